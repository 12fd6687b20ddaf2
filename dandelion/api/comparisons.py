"""Compares methods by the bytes, forward passes and time that each needs for its loss."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dandelion.api.given import plain_settings, plain_torch
from dandelion.api.run_record import Run, load_run
from shared.base.errors import ConfigError, UnknownNameError
from shared.config.schema import flat_settings

if TYPE_CHECKING:  # ``import dandelion`` takes none of these
    from pandas import DataFrame

    from dandelion.comparisons.methods import MethodSetting

COLUMNS = ("final_loss", "best_loss", "learning_rate", "settled")  # as comparison.json has them


@dataclass(frozen=True)
class Comparison:
    """Several methods trained from the same start: what each cost for the loss it reached.

    Attributes:
        folder: absolute path; has ``comparison.html``, pictures, and a run folder of each method.
    """

    folder: Path

    @property
    def details(self) -> dict[str, Any]:
        """All that ``comparison.json`` says, curves included."""
        from dandelion.comparisons.runner import COMPARISON_FILE

        details: dict[str, Any] = json.loads((self.folder / COMPARISON_FILE).read_text("utf-8"))
        return details

    @property
    def target_loss(self) -> float:
        """The loss, in nats, up to which costs are counted."""
        return float(self.details["target_loss"])

    @property
    def verdicts(self) -> list[str]:
        """Which method costs least on each axis, in sentences."""
        return [str(text) for text in self.details["verdicts"]]

    @property
    def table(self) -> "DataFrame":
        """One row a method: its costs to the target loss, and what it reached in the end.

        Columns: ``method``; for each axis of cost (``round``; ``payload`` and ``message`` in bytes,
        ``forwards`` and ``seconds``, each per client) what the target cost, or NaN if the method
        never reached it; ``final_loss`` and ``best_loss`` in nats; ``learning_rate``, none if
        a rule made those of all rounds; ``settled``.
        """
        from pandas import DataFrame

        details = self.details
        rows = [
            {
                "method": row["name"],
                **{axis: (row["to_target"] or {}).get(axis) for axis in details["axes"]},
                **{key: row[key] for key in COLUMNS},
            }
            for row in details["methods"]
        ]
        return DataFrame(rows)

    def run(self, method: str) -> Run:
        """The run of a method at the learning rate that counted.

        Raises:
            ConfigError: it was not compared.
        """
        runs = {row["name"]: row["run"] for row in self.details["methods"]}
        if method not in runs:
            raise ConfigError(f"one of {', '.join(runs)} expected, got {method!r}")
        return load_run(self.folder / runs[method])

    def _repr_html_(self) -> str:
        lines = "".join(f"<li>{escape(text)}</li>" for text in self.verdicts)
        return f"<b>{escape(str(self.folder))}</b><ul>{lines}</ul>{self.table.to_html(index=False)}"


def compare(  # noqa: PLR0913  (all but one by name)
    methods: Sequence[str] = (),
    *,
    suite: str = "",
    target_loss: float | None = None,
    seconds: float = 0.0,
    forwards: float = 0.0,
    rates: int = 3,
    name: str = "",
    of_method: Mapping[str, Mapping[str, object]] | None = None,
    progress: bool = True,
    **settings: object,
) -> Comparison:
    """Train several methods from the same start, and compare their costs.

    Args:
        methods: names, such as ``["zo", "fo", "fedavg"]``.
        suite: ``"merged"`` or ``"three-modes"``, in place of methods.
        target_loss: in nats; costs are counted up to it. None: the lowest that all reach.
        seconds: stop each method after so many; 0: no limit.
        forwards: stop each method after so many forward passes per client; 0: no limit.
        rates: try each method at so many learning rates; the best one counts.
        name: of the folder, which is made in ``output_dir``.
        of_method: settings of single methods: ``{"fo": {"learning_rate": 0.01}}``.
        progress: whether to print a line for each run.
        settings: of all methods, as for ``run``.

    Raises:
        ConfigError: an unknown method or setting, or a folder that exists.
        StalledError: a method ended at none of its rates.

    Example:
        >>> costs = dandelion.compare(["zo", "fo"], rates=1, name="two", num_rounds=2,
        ...     num_clients=2, queries=2, max_samples=20, eval_blocks=4, progress=False)
        >>> list(costs.table["method"]), costs.run("fo").rounds
        (['zo', 'fo'], 2)
    """
    from dandelion.comparisons.methods import rows_of
    from dandelion.comparisons.runner import Budget
    from dandelion.comparisons.session import ComparisonPlan, run_comparison

    if rates < 1:
        raise ConfigError(f"rates: at least 1 expected, got {rates}")
    plan = ComparisonPlan(methods, suite, target_loss, Budget(seconds, forwards), rates, name)
    given = _method_settings("", settings)
    for method, own in (of_method or {}).items():
        if method not in rows_of(methods, suite):
            raise UnknownNameError("method", method, rows_of(methods, suite))
        given += _method_settings(method, own)
    console = Console(stderr=True, quiet=not progress)
    with plain_torch():
        _, (file, *_) = run_comparison(
            plan, given, lambda text: console.print(text, markup=False, highlight=False)
        )
    return Comparison(file.parent)


def _method_settings(method: str, settings: Mapping[str, object]) -> "list[MethodSetting]":
    """Settings of a method, or of all: checked for their types when they are configured."""
    return [(method, key, value) for key, value in flat_settings(plain_settings(settings)).items()]  # type: ignore[misc]
