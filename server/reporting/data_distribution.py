"""The data distribution: how many examples of each group and class every site has."""

import csv
import io
import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.ledger.reader import LedgerReader
from server.reporting.loss_plot import STYLE
from shared.base.errors import ConfigError
from shared.base.files import write_atomically
from shared.base.text import spreadsheet_cell
from shared.config.sections import DataSettings
from shared.data.examples import Examples
from shared.training.corpus import Corpus
from shared.training.site_data import SiteData

SHARDS_JSON, SHARDS_CSV, SHARDS_PNG = "shards.json", "shards.csv", "shards.png"
COLOURS = ["#5b7fa6", "#c8606e", "#7fa66b", "#d19a4e", "#8e76b0", "#5fa8a3", "#b9739b", "#9c8a5a",
           "#6d8f4f", "#4f6d8f", "#b0685a"]  # fmt: skip
SHADES = ["#41648b", "#5b7fa6", "#7d9bbd", "#a1b7d0", "#d3d8df"]  # largest, …, all the rest
LABEL_SHARE = 0.04  # of the axis: a wider piece of a bar is labelled
LEAST_LETTERS = 4  # of a label that is cut
NO_LENGTHS = 0, 0, 0  # of examples that are not known here, or have no tokens
MOST_BARS = 64  # the plot has a bar for each of the first so many sites


@dataclass(frozen=True)
class ShardSummary:
    """What one site's shard consists of."""

    site: str
    examples: int
    lengths: tuple[int, int, int]  # tokens of the shortest, the median, the longest example
    groups: dict[str, int]  # examples of each, the largest first; empty if unknown
    classes: dict[str, int]  # in the order of the labels

    @classmethod
    def of(cls, site: str, blocks: Examples, classes: tuple[str, ...]) -> "ShardSummary":
        """Count a shard.

        Args:
            site: its name.
            blocks: the examples of the shard.
            classes: names of the labels; their numbers if empty.
        """
        sizes = np.bincount(blocks.groups, minlength=len(blocks.names))
        order = [p for p in np.argsort(-sizes, kind="stable") if sizes[p]]
        labels = np.zeros(0, np.int64) if blocks.labels is None else blocks.labels
        counts = np.bincount(labels, minlength=len(classes)) if len(labels) else labels
        names = classes or tuple(map(str, range(len(counts))))
        tokens = np.full(len(blocks), blocks.tokens.shape[1])
        if blocks.labels is not None or blocks.targets is not None:
            tokens = (blocks.tokens >= 0).sum(1)
        low, middle, high = np.quantile(tokens, (0, 0.5, 1), method="lower").tolist()
        return cls(
            site,
            len(blocks),
            (low, middle, high),
            {blocks.names[p]: int(sizes[p]) for p in order} if blocks.names else {},
            {names[label]: int(count) for label, count in enumerate(counts)},
        )


def summarize_partition(corpus: Corpus, count: int) -> list[ShardSummary]:
    """The shards of a corpus that is partitioned among ``count`` sites."""
    shards = [
        ShardSummary.of(str(number), corpus.shard(number, count), corpus.classes)
        for number in range(count)
    ]
    return [replace(s, lengths=NO_LENGTHS) for s in shards] if corpus.config.model.app else shards


def summarize_run(ledger: LedgerReader, corpus: Corpus) -> list[ShardSummary]:
    """The shards of a run's sites: those of the partition, if the sizes agree with it.

    Of sites with data of their own, only the number of examples is known.
    """
    sites = ledger.sites()
    count = corpus.config.federation.num_clients
    if corpus.deal is None and [site.slot for site in sites] == list(range(1, count + 1)):
        data = SiteData(corpus, corpus, corpus.config)
        with suppress(ConfigError):  # the server's data set may be too small for so many sites
            sizes = [len(data.shard(number, count).queries) for number in range(count)]
            if sizes == [site.examples for site in sites]:
                return summarize_partition(corpus, count)
    return [ShardSummary(site.site, site.examples, NO_LENGTHS, {}, {}) for site in sites]


def title_of(settings: DataSettings, app: str = "") -> str:
    """How the data, of a problem of one's own if ``app`` names it, were partitioned, in a line."""
    by = f" by {settings.partition_by}" if settings.partition_by else ""
    alpha = f", alpha = {settings.partition_alpha:g}" if "dirichlet" in settings.partitioner else ""
    return f"{app or Path(settings.dataset).name} partitioned{by}: {settings.partitioner}{alpha}"


def write(shards: list[ShardSummary], folder: Path) -> None:
    """Write ``shards.csv`` and ``shards.json``."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("site", "kind", "name", "examples"))
    for shard in shards:
        site = spreadsheet_cell(shard.site)
        writer.writerow((site, "all", "", shard.examples))
        for kind, named in (("group", shard.groups), ("class", shard.classes)):
            cells = ((spreadsheet_cell(name), size) for name, size in named.items())
            writer.writerows((site, kind, *cell) for cell in cells)
    text = json.dumps([vars(shard) for shard in shards], indent=1, ensure_ascii=False)
    write_atomically(folder / SHARDS_CSV, table.getvalue().encode())
    write_atomically(folder / SHARDS_JSON, f"{text}\n".encode())


def read(folder: Path) -> list[ShardSummary]:
    """The shards that ``write`` wrote into a folder; none if it did not."""
    path = folder / SHARDS_JSON
    return [ShardSummary(**row) for row in json.loads(path.read_text())] if path.exists() else []


def draw(shards: list[ShardSummary], title: str, path: Path) -> None:
    """Draw a bar for each site, divided into its classes, or its groups, or the largest of them."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = shards[:MOST_BARS]
    if len(shown) < len(shards):
        title += f" (the first {MOST_BARS} of {len(shards)} sites)"
    named = [h.classes or h.groups or {"": h.examples} for h in shown]
    names = list(dict.fromkeys(name for pieces in named for name in pieces))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 1.6 + 0.32 * len(shown)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set(xlabel="examples", ylabel="site", yticks=range(len(shown)))
        axes.set_yticklabels([h.site for h in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, max(h.examples for h in shown) * 1.01)
        axes.grid(visible=False, axis="y")
        if len(names) <= len(COLOURS):
            pieces = [[(name, of.get(name, 0)) for name in names] for of in named]
            _bars(axes, pieces, COLOURS)
        else:
            _bars(axes, [_largest(of) for of in named], SHADES)
        figure.suptitle(title, fontsize=12)
        figure.savefig(path, dpi=140)


def _largest(named: dict[str, int]) -> list[tuple[str, int]]:
    """Names and sizes of the largest groups, and last of the rest as one."""
    items, few = list(named.items()), len(SHADES) - 1
    rest = items[few:]
    items = (items[:few] + [("", 0)] * few)[:few]
    return [*items, (f"{len(rest)} more" if rest else "", sum(size for _, size in rest))]


def _bars(axes: Any, pieces: list[list[tuple[str, int]]], colours: list[str]) -> None:  # noqa: ANN401
    """Draw the pieces of every site, column by column, and label those that are wide enough."""
    sites, widest = np.arange(len(pieces)), axes.get_xlim()[1]
    start: NDArray[np.int64] = np.zeros(len(pieces), np.int64)
    for column, colour in zip(zip(*pieces, strict=True), colours, strict=False):
        sizes = np.array([size for _, size in column])
        axes.barh(sites, sizes, left=start, color=colour, edgecolor="white", lw=0.5, height=0.8)
        for site in np.flatnonzero(sizes > LABEL_SHARE * widest).tolist():
            text = _shorten(column[site][0], int(110 * sizes[site] / widest))
            light = "#333a44" if colour == SHADES[-1] else "white"
            axes.text(start[site] + sizes[site] / 2, site, text, ha="center", va="center",
                      fontsize=8, color=light, clip_on=True)  # fmt: skip
        start = start + sizes


def _shorten(name: str, letters: int) -> str:
    """A name cut to so many letters; empty if too few letters would be left."""
    if len(name) <= letters:
        return name
    return f"{name[: letters - 1]}…" if letters > LEAST_LETTERS else ""
