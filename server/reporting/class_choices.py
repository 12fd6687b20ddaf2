"""What a classifier chose for the examples of each class: a table, a picture, the worst pairs."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.reporting.loss_plot import HELD_OUT, INK, STYLE
from shared.base.files import write_atomically
from shared.base.metrics import class_scores
from shared.base.text import escape_text, spreadsheet_cell

CLASSES_CSV, CONFUSION_PNG = "classes.csv", "confusion.png"
MOST_CELLS = 30  # classes whose table is drawn; of more, the pairs that are confused most
MOST_PAIRS = 25
LETTERS = 24  # of a name in the picture


@dataclass(frozen=True)
class ClassChoices:
    """A confusion table of the server's held-out examples, with the classes' names."""

    names: Sequence[str]
    confusion: NDArray[np.int64]  # (k, k) [class, choice]

    def rows(self) -> list[dict[str, Any]]:
        """Each class with its precision, recall, F1 and support, in the order of their numbers."""
        scores = class_scores(self.confusion)
        return [
            {"class": name, "precision": float(p), "recall": float(r), "f1": float(f),
             "support": int(support)}
            for name, p, r, f, support in zip(self.names, *scores, strict=True)
        ]  # fmt: skip

    def worst_pairs(self) -> list[tuple[str, str, int]]:
        """Class, wrong choice and how often, the most frequent first; at most MOST_PAIRS."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
        pairs = [divmod(int(cell), len(self.names)) for cell in order]
        return [(self.names[a], self.names[b], int(wrong[a, b])) for a, b in pairs if wrong[a, b]]

    def summary(self) -> dict[str, Any]:
        """The worst pairs, and the rows of few classes: those of many are in ``classes.csv``."""
        few = {"classes": self.rows()} if len(self.names) <= MOST_CELLS else {}
        return {**few, "most_confused": self.worst_pairs()}

    def write(self, folder: Path) -> None:
        """Write ``classes.csv``: a row for each class."""
        rows, table = self.rows(), io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            cells = (float(f"{v:.6g}") if isinstance(v, float) else v for v in row.values())
            writer.writerow([spreadsheet_cell(cell) for cell in cells])
        write_atomically(folder / CLASSES_CSV, table.getvalue().encode())

    def draw(self, folder: Path) -> None:
        """Draw ``confusion.png``: the whole table, or the worst pairs of a large one."""
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        with matplotlib.rc_context(STYLE):
            figure = Figure(layout="constrained")
            FigureCanvasAgg(figure)
            if len(self.names) <= MOST_CELLS:
                self._draw_table(figure)
            else:
                self._draw_pairs(figure)
            figure.savefig(folder / CONFUSION_PNG, dpi=140)

    def _draw_table(self, figure: Any) -> None:  # noqa: ANN401
        """Shares of each class's examples as shades, counts as numbers."""
        count = len(self.names)
        figure.set_size_inches(3.2 + 0.42 * count, 2.4 + 0.4 * count)
        axes, names = figure.subplots(), [_short(name) for name in self.names]
        shares = self.confusion / np.maximum(self.confusion.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="chosen class", ylabel="class of the example")
        axes.set_xticks(range(count), names, rotation=90 if count > 4 else 0)
        axes.set_yticks(range(count), names)
        axes.grid(visible=False)
        for row, column in np.argwhere(self.confusion).tolist():
            colour = "white" if shares[row, column] > 0.5 else INK
            number = f"{self.confusion[row, column]:,}"
            axes.text(column, row, number, ha="center", va="center", color=colour, fontsize=8)

    def _draw_pairs(self, figure: Any) -> None:  # noqa: ANN401
        """A bar for each of the pairs that are confused most."""
        pairs = self.worst_pairs()
        figure.set_size_inches(9, 1.4 + 0.32 * max(len(pairs), 2))
        axes = figure.subplots()
        axes.barh(range(len(pairs)), [number for *_, number in pairs], color=HELD_OUT)
        axes.set_yticks(range(len(pairs)), [f"{_short(a)} → {_short(b)}" for a, b, _ in pairs])
        axes.invert_yaxis()
        wrong = int(self.confusion.sum() - np.trace(self.confusion))
        axes.set(
            xlabel="examples",
            title=f"most confused of {len(self.names):,} classes: {wrong:,} wrong of "
            f"{self.confusion.sum():,} held-out examples",
        )


def _short(name: str) -> str:
    name = escape_text(name)
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
