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
    from client.handlers.handlers import zeroth_order_handler, zeroth_order_mod
    from dandelion.api.comparisons import Comparison, compare
    from dandelion.api.ledgers import ReplayedModel, Verification
    from dandelion.api.preflights import preflight
    from dandelion.api.run_record import Run, load_run
    from dandelion.api.runs import resume, run
    from dandelion.api.sweeps import Sweep, sweep
    from server.strategies.rebuild import rebuild_from_ledger
    from server.strategies.zeroth_order import ZerothOrder
    from shared.base.errors import ConfigError, DandelionError
    from shared.config.schema import Config
    from shared.problem.problem import Problem, Site

    __version__: str

_PUBLIC = {  # each name and the module that has it, which is imported when the name is used
    "Comparison": "dandelion.api.comparisons",
    "Config": "shared.config.schema",
    "ConfigError": "shared.base.errors",
    "DandelionError": "shared.base.errors",
    "Problem": "shared.problem.problem",
    "ReplayedModel": "dandelion.api.ledgers",
    "Run": "dandelion.api.run_record",
    "Site": "shared.problem.problem",
    "Sweep": "dandelion.api.sweeps",
    "Verification": "dandelion.api.ledgers",
    "ZerothOrder": "server.strategies.zeroth_order",
    "compare": "dandelion.api.comparisons",
    "load_run": "dandelion.api.run_record",
    "preflight": "dandelion.api.preflights",
    "rebuild_from_ledger": "server.strategies.rebuild",
    "resume": "dandelion.api.runs",
    "run": "dandelion.api.runs",
    "sweep": "dandelion.api.sweeps",
    "zeroth_order_handler": "client.handlers.handlers",
    "zeroth_order_mod": "client.handlers.handlers",
}
__all__ = [
    "Comparison",
    "Config",
    "ConfigError",
    "DandelionError",
    "Problem",
    "ReplayedModel",
    "Run",
    "Site",
    "Sweep",
    "Verification",
    "ZerothOrder",
    "__version__",
    "compare",
    "load_run",
    "preflight",
    "rebuild_from_ledger",
    "resume",
    "run",
    "sweep",
    "zeroth_order_handler",
    "zeroth_order_mod",
]


def __getattr__(name: str) -> object:
    """Import what a public name stands for; ``__version__`` is that of the installed package.

    Raises:
        AttributeError: there is no such name.
        DandelionError: it is no part of a Flower app bundle, and this is one.
    """
    if name == "__version__":
        from importlib.metadata import version

        return version("dandelion")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(_PUBLIC[name])
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != __name__:
            raise
        raise _refuse(name) from error
    return getattr(module, name)


def _refuse(name: str) -> Exception:
    """The error for a name whose module a Flower app bundle of Dandelion leaves out."""
    from shared.base.errors import DandelionError

    return DandelionError(
        f"dandelion.{name} is for the operator and not in this Flower app bundle, which has what "
        "server and sites need; call it outside of the app, where Dandelion is installed: "
        "pip install . in its folder"
    )


def __dir__() -> list[str]:
    return __all__
