"""Trains a run, or goes on with one, and shows how far it is."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dandelion.api.given import config_of, plain_torch
from dandelion.api.run_record import Run, load_run
from shared.base.errors import UnknownNameError

if TYPE_CHECKING:
    from shared.config.schema import Config

Engine = Callable[["Config", Console], Path]


def run(
    config: "Config | str | Path | None" = None,
    *,
    engine: str = "local",
    progress: bool = True,
    **settings: object,
) -> Run:
    """Train a new run and return it.

    Args:
        config: a ``dandelion.Config``, or the path of a TOML file, to start from.
        engine: ``"local"`` (all sites in this process) or ``"flower"`` (Flower's simulation).
        progress: whether to show how far the run is, on standard error or in the notebook.
        settings: any setting by its name with underscores, as ``num_rounds=20``; ``name`` or
            ``run_name`` names the folder, which is made in ``output_dir``; ``preset`` takes the
            settings of a whole task. ``dandelion settings`` lists all.

    Raises:
        ConfigError: an unknown setting (the nearest ones are named), a value of the wrong type or
            out of range, settings that cannot work together, or a folder that has a run already.
        UnknownNameError: nothing has the name: engine, preset, model, optimizer, …
        StalledError: too few sites answered.

    Example:
        >>> import dandelion
        >>> run = dandelion.run(name="first", num_rounds=3, num_clients=2, queries=4,
        ...                     max_samples=20, eval_blocks=4, progress=False)
        >>> len(run.metrics)
        3
        >>> dandelion.run(querys=3)
        Traceback (most recent call last):
        ...
        shared.base.errors.ConfigError: unknown setting 'querys'; did you mean queries...
    """
    train = engine_of(engine)
    return _train(config_of(config, settings), train, progress)


def resume(
    folder: str | Path, *, engine: str = "local", progress: bool = True, **settings: object
) -> Run:
    """Go on with a run that was interrupted, or train a finished one for more rounds.

    Args:
        folder: of the run.
        engine: as for ``run``.
        progress: as for ``run``.
        settings: those that may change, such as ``num_rounds``; the others stay as recorded.

    Raises:
        ConfigError: there is no run in the folder, or a setting would make another run of it.

    Example:
        >>> run = dandelion.run(name="short", num_rounds=2, num_clients=2, queries=2,
        ...                     max_samples=20, eval_blocks=4, progress=False)
        >>> dandelion.resume(run.folder, num_rounds=4, progress=False).rounds
        4
    """
    train = engine_of(engine)
    return _train(config_of(None, settings, Path(folder).expanduser()), train, progress)


def engine_of(name: str) -> Engine:
    """The function that trains a configuration with an engine and shows it on a console.

    Raises:
        UnknownNameError: no engine has the name.
    """
    if name not in ENGINES:
        raise UnknownNameError("engine", name, ENGINES)
    return ENGINES[name]


def train_local(config: "Config", console: Console) -> Path:
    """Train with every site in this process; return the run folder."""
    from dandelion.engines.local import run_local
    from dandelion.monitor.progress import RunProgress

    with RunProgress(console) as progress:
        return run_local(config, progress)


def train_flower(config: "Config", console: Console) -> Path:
    """Train on Flower's simulation engine; return the run folder."""
    from dandelion.engines.flower_simulation import run_flower

    return run_flower(config, console)


ENGINES: dict[str, Engine] = {"local": train_local, "flower": train_flower}


def _train(config: "Config", train: Engine, progress: bool) -> Run:
    with plain_torch():
        return load_run(train(config, Console(stderr=True, quiet=not progress)))
