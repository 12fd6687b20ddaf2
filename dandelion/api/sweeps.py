"""Trains many runs side by side, over a grid or a search of settings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dandelion.api.given import plain_settings
from dandelion.api.run_record import Run, load_run
from shared.base.errors import ConfigError

if TYPE_CHECKING:  # ``import dandelion`` takes none of these
    from pandas import DataFrame

Interval = tuple[float, float] | tuple[float, float, str]  # low, high, perhaps "log"


@dataclass(frozen=True)
class Sweep:
    """Many runs, and what each reached.

    Attributes:
        folder: absolute path; has ``sweep.csv``, pictures, and a run folder of each cell.
        table: one row a cell: its name ``cell``; the settings that vary; ``state`` (``done``,
            ``pruned`` or ``failed``) and ``error``; losses in nats; ``forwards``, ``bytes_up`` and
            ``bytes_down`` per client; ``seconds``; ``digest``.
        summary: the best cell, and the best one for each value of each axis, in words.
    """

    folder: Path
    table: "DataFrame"
    summary: str

    @property
    def best(self) -> Run:
        """The run with the lowest final held-out loss.

        Raises:
            ConfigError: no run was evaluated.
        """
        done = self.table[self.table["state"] == "done"].dropna(subset=["final_loss"])
        if done.empty:
            raise ConfigError(f"{self.folder}: no run of this sweep was evaluated")
        first = done.sort_values(["final_loss", "cell"]).iloc[0]
        return load_run(self.folder / str(first["cell"]))

    def _repr_html_(self) -> str:
        return f"<b>{escape(str(self.folder))}</b>{self.table.to_html(index=False)}"


def sweep(  # noqa: PLR0913  (all but one by name)
    grid: Mapping[str, Iterable[object]] | None = None,
    *,
    search: Mapping[str, Interval] | None = None,
    trials: int = 0,
    parallel: int = 0,
    gpus: Sequence[int | str] = (),
    name: str = "",
    progress: bool = True,
    **settings: object,
) -> Sweep:
    """Train every combination of the listed values, or search ranges of them with Optuna.

    Each run trains in a process of its own. A run that fails is a row of the table; the others
    go on. An interrupted sweep goes on with ``dandelion sweep --resume FOLDER``.

    Args:
        grid: values by setting: ``{"queries": [4, 16], "eps": [1e-3, 1e-2]}``.
        search: an interval by setting: ``{"learning_rate": (1e-3, 1e-1, "log")}``; needs the extra
            ``search``.
        trials: runs of each combination of the grid, with ``search``; 0: 20.
        parallel: runs at a time; 0: one for each of ``gpus``, or one.
        gpus: numbers of the GPUs to assign to runs in turn.
        name: of the folder, which is made in ``output_dir``.
        progress: whether to show how far the runs are.
        settings: of all runs, as for ``run``.

    Raises:
        ConfigError: nothing varies, an unknown setting, no valid combination, or the folder exists.

    Example:
        >>> runs = dandelion.sweep({"queries": [1, 2]}, name="grid", num_rounds=2, num_clients=2,
        ...                        max_samples=20, eval_blocks=4, progress=False)
        >>> list(runs.table["queries"]), list(runs.table["state"]), runs.best.rounds
        ([1, 2], ['done', 'done'], 2)
    """
    from dandelion.sweeps.plan import TRIALS, SweepPlan, base_of, begin_sweep
    from dandelion.sweeps.session import SweepProgress, SweepSession

    if trials and not search:
        raise ConfigError(f"trials = {trials} without search: a grid has one run for each cell")
    axes = [_axis(key, values) for key, values in (grid or {}).items()]
    ranges = [_range(key, interval) for key, interval in (search or {}).items()]
    base = base_of(None, plain_settings(settings))
    folder, plan = begin_sweep(SweepPlan(axes, ranges, trials or TRIALS, base), name)
    session = SweepSession(folder, plan)
    console = Console(stderr=True, quiet=not progress)
    try:
        with SweepProgress(console, folder, plan.count) as bars:
            session.run(parallel, [str(gpu) for gpu in gpus], bars)
    finally:
        report = session.report()
    return Sweep(folder, _table(folder), report.summary)


def _axis(key: str, values: Iterable[object]) -> str:
    """An axis as ``key=value,value,…``, the form in which ``sweep.json`` keeps it.

    Raises:
        ConfigError: a value contains a comma.
    """
    if isinstance(values, str):
        raise ConfigError(f"grid: a list of values of {key} expected, got {values!r}")
    texts = [str(value) for value in plain_settings(dict(enumerate(values))).values()]  # type: ignore[arg-type]
    if wrong := [text for text in texts if "," in text]:
        raise ConfigError(f"grid: values of {key} without a comma expected, got {wrong[0]!r}")
    return f"{key}={','.join(texts)}"


def _range(key: str, interval: Interval) -> str:
    """An interval as ``key=low..high`` or ``key=low..high:log``.

    Raises:
        ConfigError: another form.
    """
    low, high, *scale = interval
    if scale not in ([], ["log"]):
        raise ConfigError(
            f'search: (low, high) or (low, high, "log") of {key} expected, got {interval}'
        )
    return f"{key}={low}..{high}" + (":log" if scale else "")


def _table(folder: Path) -> "DataFrame":
    """The file ``sweep.csv`` as it is read by pandas, with columns that are Python names."""
    from pandas import read_csv

    from dandelion.sweeps.session import CSV_FILE

    table = read_csv(folder / CSV_FILE, keep_default_na=True)
    return table.rename(columns=lambda name: name.replace(" ", "_").replace("-", "_"))
