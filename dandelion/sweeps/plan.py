"""What a sweep varies and shares; written when it begins, read again when it is resumed."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dandelion.settings.gather import read_toml, resolve_paths, with_app_folder
from dandelion.sweeps.grid import Cell, axes_of, cells_of
from dandelion.sweeps.search import SearchedCells, ranges_of
from shared.base.errors import ConfigError
from shared.base.files import write_atomically
from shared.base.options import Value
from shared.config.schema import Config, flat_settings

if TYPE_CHECKING:  # the runner needs torch, which takes a second
    from dandelion.sweeps.runner import CellSource

PLAN_FILE = "sweep.json"
TRIALS = 20  # of each cell, unless said


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep varies and what all its cells share; ``sweep.json`` in its folder."""

    grid: list[str]  # key=value,value,…
    search: list[str]  # key=low..high or key=low..high:log
    trials: int
    base: dict[str, Value]  # settings of all cells

    @property
    def count(self) -> int:
        """How many runs the sweep has."""
        return len(axes_and_cells(self)[1]) * (self.trials if self.search else 1)


def base_of(file: Path | None, given: Mapping[str, object]) -> dict[str, Value]:
    """The settings that all cells share: of a file, then those given; they keep no model.

    Values are checked with the cells.

    Raises:
        ConfigError: the file cannot be read, or a key is given twice.
    """
    settings = resolve_paths(flat_settings(read_toml(file))) if file else {}
    settings = with_app_folder(settings | resolve_paths(flat_settings(given)))
    return {"save-model": False, **cast("Mapping[str, Value]", settings)}


def begin_sweep(plan: SweepPlan, name: str) -> tuple[Path, SweepPlan]:
    """Make the folder of a new sweep, and write the plan into it.

    Args:
        plan: the setting ``output-dir`` in its base is the parent of the folder.
        name: of the folder; if it is empty, the name contains the time.

    Raises:
        ConfigError: nothing varies, no cell is valid, or the folder exists.
    """
    if not plan.grid and not plan.search:
        raise ConfigError("--grid key=value,value,… or --search key=low..high expected")
    check_plan(plan)
    parent = str(plan.base.pop("output-dir", "runs"))
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = Path(parent, name or f"sweep-{stamp}").resolve()
    if folder.exists():
        raise ConfigError(f"{folder} exists already; --resume it, or choose another --name")
    write_atomically(folder / PLAN_FILE, json.dumps(asdict(plan), indent=1).encode())
    return folder, plan


def resume_sweep(folder: Path) -> tuple[Path, SweepPlan]:
    """Read the plan of the sweep in a folder.

    Raises:
        ConfigError: there is none.
    """
    try:
        values = json.loads((folder / PLAN_FILE).read_text())
        return folder.resolve(), SweepPlan(**values)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{folder}: no sweep to resume; {PLAN_FILE} expected in it") from error


def check_plan(plan: SweepPlan) -> None:
    """Refuse a sweep if all its cells are invalid; otherwise invalid cells fail alone.

    Raises:
        ConfigError: what is wrong with the first cell.
    """
    _, cells = axes_and_cells(plan)
    base = {key: value for key, value in plan.base.items() if key != "resume"}
    errors = []
    for cell in cells:
        try:
            cell.config(base)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == len(cells):
        raise errors[0]


def axes_and_cells(plan: SweepPlan) -> tuple[Mapping[str, list[Value]], list[Cell]]:
    """The axes of a plan's grid, and the cells that are all their combinations.

    Raises:
        ConfigError: an axis or a range cannot be read, or a key is in both.
    """
    axes = axes_of(plan.grid)
    if twice := axes.keys() & {each.key for each in ranges_of(plan.search)}:
        raise ConfigError(f"{sorted(twice)}: both in --grid and in --search")
    return axes, cells_of(axes)


def source_of(folder: Path, plan: SweepPlan) -> tuple["CellSource", list[Cell], list[str]]:
    """What gives out the cells of a sweep one by one; its cells; the keys that vary."""
    from dandelion.sweeps.runner import ListedCells

    axes, cells = axes_and_cells(plan)
    if not plan.search:
        return ListedCells(cells), cells, list(axes)
    ranges = ranges_of(plan.search)
    seed = int(str(plan.base.get("seed", Config().training.seed)))
    source = SearchedCells(folder, cells, ranges, plan.trials, seed)
    return source, cells, [*axes, *(each.key for each in ranges)]
