"""``README.md`` beside a saved model: what the hub reads of it, and what its reader must know.

The front matter is made by ``huggingface_hub`` itself. The card leaves this machine: it names no
site, and of a folder only its last part.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from server.ledger.lineage import lineage
from server.ledger.reader import LedgerReader
from server.pages.facts import (
    OF_THIS_MACHINE,
    SettingRow,
    identity,
    name_of_data,
    setting_rows,
)
from shared.base.files import write_atomically
from shared.base.text import escape_text, portable
from shared.config.schema import Config
from shared.models.packaged import PACKAGED
from shared.modes.mode import mode_of

CARD = "README.md"
TAGS = ["dandelion", "federated-learning"]
MEASURED = "zeroth-order-optimization"  # the tag of a run that measures differences
PIPELINES = {
    **dict.fromkeys(("language-modelling", "instruction", "generation"), "text-generation"),
    **dict.fromkeys(("classification", "regression"), "text-classification"),
    "multiple-choice": "multiple-choice",
}  # the hub's name of each task
NOT_SETTINGS_OF_A_MODEL = (*OF_THIS_MACHINE, "save-model", "model-license")
LIMITS = """The losses and scores above are all that was measured. Nobody has examined what the
model says of people, in other languages, or outside the kind of text that it was trained on; its
base model's own limits hold too."""
PRIVATE = """Sites clipped their numbers and added noise (`privacy = {mode}`); each site's own
account says what that cost it."""
PLAIN = """Sites sent numbers without noise, so the model, and even more so the ledger, may tell
something of their data."""
NO_LICENSE = """No licence has been chosen (setting `model-license`): ask before you use it."""


def write_card(into: Path, run: Path, ledger: LedgerReader, config: Config, round_: int) -> Path:
    """Write the card of the model after a round into the folder of the model; return the file.

    Args:
        into: the model's folder.
        run: the run's folder.
        ledger: of the run.
        config: of the run.
        round_: after which the model was saved.
    """
    write_atomically(path := into / CARD, model_card(run, ledger, config, round_).encode())
    return path


def model_card(run: Path, ledger: LedgerReader, config: Config, round_: int) -> str:
    """The text of the card of the model after a round."""
    facts = identity(run, ledger, config, round_)
    about = Path(facts["model"]).name
    lines = [
        f"---\n{front_matter(run, ledger, config, round_)}\n---",
        f"# {_plain(about)}, trained by federated rounds",
        f"{_plain(about)} after round {round_:,} of a run of Dandelion, in which sites keep their "
        "data and send loss differences or gradients.",
        "" if license_of(config) else NO_LICENSE,
        f"## Results\n\n{_results(ledger, round_)}",
        f"## Data and sites\n\n{_data(ledger, config)}",
        f"## Identity\n\n{_table(('name', 'value'), list(facts.items()))}",
        f"## Settings that differ from the defaults\n\n{_settings(setting_rows(config))}",
        f"## How to reproduce it\n\n{_commands(config, round_)}",
        f"## Limits\n\n{_one_line(LIMITS)} {_privacy(config)}",
    ]
    return "\n\n".join(line.rstrip() for line in lines if line) + "\n"


def front_matter(run: Path, ledger: LedgerReader, config: Config, round_: int) -> str:
    """The YAML that the hub reads: licence, base model, tags, data, metrics and their values."""
    from huggingface_hub import ModelCardData

    scores = {name: values[-1] for name, values in _series(ledger, round_).items()}
    hub_data = config.data.dataset if _is_on_hub(config.data.dataset) else None
    facts: dict[str, Any] = {
        "license": license_of(config),
        "base_model": base_model_of(config),
        "datasets": [hub_data.partition(":")[0]] if hub_data else None,
        "library_name": None if config.model.app else "transformers",
        "pipeline_tag": None if config.model.app else PIPELINES.get(config.data.task),
        "metrics": sorted(scores) or None,
        "model_name": run.absolute().name,
        "eval_results": _eval_results(config, scores) or None,
    }
    tags = [*TAGS, MEASURED] if mode_of(config).measures else TAGS
    data = ModelCardData(tags=tags, **facts)
    return str(data.to_yaml()).strip()


def license_of(config: Config) -> str | None:
    """The licence that a run's settings name, or that of its base model, if it is known."""
    name = config.model.name
    if config.run.model_license:
        return config.run.model_license
    if name in PACKAGED:
        return PACKAGED[name].license
    card = Path(name, CARD)
    if config.model.app or not card.is_file():
        return None
    from huggingface_hub import ModelCard

    try:
        value = ModelCard.load(card).data.license
    except Exception:  # whatever a library raises on a user's file
        return None
    return str(value) if value else None


def base_model_of(config: Config) -> str | None:
    """The hub's name of the base model, if it has one."""
    name = config.model.name
    if config.model.app:
        return None
    if name in PACKAGED:
        return PACKAGED[name].origin
    if _is_on_hub(name):
        return "/".join(name.split("/")[:2])
    return None


def _is_on_hub(name: str) -> bool:
    path = name.partition(":")[0]
    return path.count("/") >= 1 and not path.startswith(("/", ".", "~")) and not Path(path).exists()


def _eval_results(config: Config, scores: dict[str, float]) -> list[Any]:
    from huggingface_hub import EvalResult

    task = PIPELINES.get(config.data.task, "text-generation")
    data = name_of_data(config)
    return [
        EvalResult(task, data, f"{data}, held out", metric_type=name, metric_value=round(value, 6))
        for name, value in scores.items()
    ]


def _series(ledger: LedgerReader, round_: int) -> dict[str, list[float]]:
    """The server's losses and scores on the way to a round, without what was undone."""
    line = lineage(ledger, round_)
    series = {"loss": [loss for at, loss in ledger.evaluations() if at in line]}
    for name, points in ledger.scores().items():
        series[name] = [value for at, value in points if at in line]
    return {name: values for name, values in series.items() if values}


def _results(ledger: LedgerReader, round_: int) -> str:
    rows = [
        (name, f"{values[0]:.4g}", f"{values[-1]:.4g}")
        for name, values in _series(ledger, round_).items()
    ]
    if not rows:
        return "The model was not evaluated."
    return _table(("on the server's held-out examples", "before", "after"), rows)


def _data(ledger: LedgerReader, config: Config) -> str:
    sizes = sorted(site.examples for site in ledger.sites()) or [0]
    middle = median(sizes)
    each = f"{sizes[0]:,} to {sizes[-1]:,}, median {middle:,.0f}"
    refusals = sum(ledger.count_refusals().values())
    return (
        f"Data: `{_plain(name_of_data(config))}`, task {_plain(config.data.task)}, partitioned by "
        f"`{_plain(config.data.partitioner)}`. {ledger.count_contributors():,} sites contributed, "
        f"with {each} examples each. {refusals:,} replies were refused, and "
        f"{ledger.count_skips():,} attempts at a round skipped; the run went back "
        f"{len(ledger.rewinds()):,} times."
    )


def _settings(rows: Sequence[SettingRow]) -> str:
    changed = [
        (f"`{each.key}`", portable(each.value), str(each.default))
        for each in rows
        if each.is_changed and each.key not in NOT_SETTINGS_OF_A_MODEL
    ]
    return _table(("setting", "value", "default"), changed) if changed else "None."


def _commands(config: Config, round_: int) -> str:
    """The commands that make the same run and the same model, where the data are."""
    pairs = [
        f"--set {shlex.quote(f'{each.key}={_text(each.value)}')}"
        for each in setting_rows(config)
        if each.is_changed and each.key not in NOT_SETTINGS_OF_A_MODEL
    ]
    run = " ".join(["dandelion run --name again", *pairs])
    return (
        f"With the same versions and the same data; paths are those of your machine:\n\n"
        f"```\n{run}\ndandelion ledger replay runs/again --round {round_} --out model\n```\n\n"
        "Whoever has the ledger of this run needs no data: `dandelion ledger verify RUN` compares "
        f"every digest, and `dandelion ledger replay RUN --round {round_} --out model` makes this "
        "model again."
    )


def _privacy(config: Config) -> str:
    if config.privacy.mode == "none":
        return _one_line(PLAIN)
    return _one_line(PRIVATE.format(mode=config.privacy.mode))


def _one_line(text: str) -> str:
    return text.replace("\n", " ")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else portable(value)


def _table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(value: object) -> str:
    """Text in one cell or line of Markdown, without HTML."""
    text = escape_text(str(value)).replace("|", "\\|")
    return text.replace("<", "&lt;").replace(">", "&gt;")
