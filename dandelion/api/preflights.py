"""Tries settings before a run, and suggests better ones."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dandelion.api.given import config_of, plain_torch

if TYPE_CHECKING:  # torch takes a second, and ``--help`` needs none of it
    from server.preflight.judge import Preflight
    from server.preflight.scope_table import ScopeTable
    from shared.config.schema import Config

WAITING = "measuring rounding, slopes and trial steps; a large model takes minutes"


def preflight(
    config: "Config | str | Path | None" = None, *, progress: bool = True, **settings: object
) -> "Preflight":
    """Measure the effect of eps and learning rate on the model that a run would start from.

    Nothing is trained. The result is written into ``preflight.json`` in a folder of its own.

    Args:
        config: as for ``run``.
        progress: whether to say that it measures.
        settings: as for ``run``.

    Returns:
        The measurements. ``verdict`` is ``"fine"``, ``"doubtful"`` or ``"refused"``; ``reasons``
        says why; ``suggestion()`` has the settings that should be others, by their keys; ``loss``
        and ``loss_noise`` are in nats; ``eps`` and ``rates`` are what was tried.

    Raises:
        ConfigError: as for ``run``.

    Example:
        >>> tried = dandelion.preflight(num_clients=2, queries=2, max_samples=20, eval_blocks=4,
        ...                             learning_rate=1e3, progress=False)
        >>> tried.verdict, list(tried.suggestion())
        ('doubtful', ['learning-rate'])
    """
    console = Console(stderr=True, quiet=not progress)
    with plain_torch():
        outcome, _ = try_settings(config_of(config, settings), console)
    return outcome


def try_settings(config: "Config", console: Console) -> "tuple[Preflight, Path]":
    """Measure a configuration; return the result, and the file that it was written to."""
    from server.ledger.run_folder import run_folder
    from server.preflight.judge import preflight as measure
    from shared.training.corpus import Corpus, load_evaluation
    from shared.training.oracle import Oracle

    config = _with_name(config)
    oracle = Oracle.of(config)
    corpus = Corpus.of(config, oracle.language_model)
    with console.status(WAITING):
        outcome = measure(config, oracle, load_evaluation(corpus, oracle.language_model))
    return outcome, outcome.write(run_folder(config))


def try_scopes(config: "Config", seconds: float, console: Console) -> "tuple[ScopeTable, Path]":
    """Train each scope for some seconds; return what that brought, and the file that has it."""
    from server.ledger.run_folder import run_folder
    from server.preflight.scope_table import compare_scopes

    config = _with_name(config)
    table = compare_scopes(config, seconds, console.print)
    return table, table.write(run_folder(config))


def _with_name(config: "Config") -> "Config":
    """The configuration with a name for its folder, if it has none."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return config if config.run.name else config.replace(run_name=f"preflight-{stamp}")
