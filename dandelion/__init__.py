"""Federated zeroth-order training of models, in which sites send scalars, not models.

This package is the only documented import, and ``__all__`` lists what it offers. Everything else,
``server``, ``client`` and ``shared`` included, is internal and may change without notice.

    import dandelion

    run = dandelion.run(num_rounds=20, queries=64)  # trains, and returns a dandelion.Run
    run.summary["evaluation_loss_last"], run.metrics, run.evaluations
    run.verify()
    run.replay(10).save("model-10")
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dandelion.api.comparisons import Comparison, compare
    from dandelion.api.ledgers import ReplayedModel, Verification
    from dandelion.api.preflights import preflight
    from dandelion.api.run_record import Run, load_run
    from dandelion.api.runs import resume, run
    from dandelion.api.sweeps import Sweep, sweep
    from shared.base.errors import ConfigError, DandelionError
    from shared.config.schema import Config

    __version__: str

_PUBLIC = {  # each name and the module that has it, which is imported when the name is used
    "Comparison": "dandelion.api.comparisons",
    "Config": "shared.config.schema",
    "ConfigError": "shared.base.errors",
    "DandelionError": "shared.base.errors",
    "ReplayedModel": "dandelion.api.ledgers",
    "Run": "dandelion.api.run_record",
    "Sweep": "dandelion.api.sweeps",
    "Verification": "dandelion.api.ledgers",
    "compare": "dandelion.api.comparisons",
    "load_run": "dandelion.api.run_record",
    "preflight": "dandelion.api.preflights",
    "resume": "dandelion.api.runs",
    "run": "dandelion.api.runs",
    "sweep": "dandelion.api.sweeps",
}
__all__ = [
    "Comparison",
    "Config",
    "ConfigError",
    "DandelionError",
    "ReplayedModel",
    "Run",
    "Sweep",
    "Verification",
    "__version__",
    "compare",
    "load_run",
    "preflight",
    "resume",
    "run",
    "sweep",
]


def __getattr__(name: str) -> object:
    """Import what a public name stands for; ``__version__`` is that of the installed package."""
    if name == "__version__":
        from importlib.metadata import version

        return version("dandelion")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
