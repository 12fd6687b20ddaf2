"""The small federation of the tests: settings that they share, and a way to change some."""

from shared.training.validate import configure

DATA = {
    "dataset": "topics",
    "max-samples": 6,
    "partitioner": "iid",
    "block-size": 16,
    "eval-blocks": 8,
}
SMALL = {
    **DATA,
    "model": "byte-gpt",
    "num-clients": 3,
    "num-rounds": 3,
    "queries": 2,
    "zo-batch-size": 2,
    "learning-rate": 6e-3,
    "save-model": False,
    "round-timeout": 0.05,  # sites in this process have answered before the server looks
    "wait-timeout": 0.05,
    "keep-disk": 0,  # the user's cache is left alone
}


def settings_of(changes):
    """Keyword arguments as settings: underscores become hyphens."""
    return {key.replace("_", "-"): value for key, value in changes.items()}


def small_config(folder, name="run", **changes):
    """A small configuration whose runs are in ``folder``; keyword arguments change settings."""
    own = {"output-dir": str(folder), "run-name": name}
    return configure({**SMALL, **own, **settings_of(changes)})
