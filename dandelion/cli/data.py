"""``dandelion data``: lists, explains, fetches and merges data sets, and previews partitions."""

from collections import Counter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from dandelion.cli.console import ConfigOption, JsonOption, SettingsOption, say, show_table
from shared.data.columns import Columns
from shared.data.documents import DATASETS, UNLABELLED, Documents
from shared.data.resolve import documents_of, source_of

if TYPE_CHECKING:
    from server.reporting.data_distribution import ShardSummary
    from shared.config.schema import Config
    from shared.data.examples import Examples
    from shared.training.corpus import Corpus

app = typer.Typer(no_args_is_help=True, help="List, explain, fetch, merge and inspect data sets.")
Name = Annotated[str, typer.Argument(help="A listed name, a folder, or owner/name[:config].")]
Samples = Annotated[
    int, typer.Option("--samples", min=0, help="Number of documents; 0: the recommended one.")
]
KINDS = ("embedded", "packaged", "local", "hub")
NAMED_GROUPS = 3  # the largest


@app.command(name="list")
def list_(as_json: JsonOption = False) -> None:
    """List all data sets that have a name."""
    table = Table("name", "from", "here", "what it is", "size", "grouped by", box=SIMPLE_HEAD)
    for name in sorted(DATASETS.names(), key=lambda name: KINDS.index(DATASETS[name].kind)):
        source = DATASETS[name]
        here, ids = "yes" if source.is_here else "no", ", ".join(source.ids)
        table.add_row(name, source.kind, here, source.about, source.size, ids)
    show_table(table, as_json)
    if as_json:
        return
    say(
        "A data set can also be a folder that the datasets library saved, a folder of text, json, "
        "csv or parquet files, or owner/name[:config] on the Hugging Face hub."
    )


@app.command()
def info(name: Name, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """Explain what a data set is, where it comes from, and what it contains."""
    columns = _columns_of(settings or [])
    source = source_of(name, columns)
    rows = [
        ("what", source.about),
        ("size", source.size),
        ("licence", source.licence),
        ("from", source.origin),
        ("grouped by", ", ".join(source.ids) + ", or any column" * source.any_id),
        ("taken", f"the first {source.samples:,} documents" if source.samples else "all"),
        ("here", "yes" if source.is_here else f"no: dandelion data download {name}"),
    ]
    here = describe(documents_of(name, columns=columns)) if source.is_here else []
    show(name, rows + here, as_json)


@app.command()
def download(name: Name, samples: Samples = 0, as_json: JsonOption = False) -> None:
    """Fetch a data set into the cache, so that runs need no network."""
    show(name, describe(documents_of(name, samples)), as_json)


@app.command()
def merge(
    names: Annotated[list[str], typer.Argument(help="Two data sets or more.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    samples: Samples = 0,
    as_json: JsonOption = False,
) -> None:
    """Merge several data sets into one folder, which the setting dataset accepts."""
    from shared.data.resolve import merge as merge_all

    show(str(out), describe(merge_all(names, out, samples)), as_json)


@app.command()
def inspect(
    name: Name,
    settings: SettingsOption = None,
    file: ConfigOption = None,
    out: Annotated[Path, typer.Option(help="Folder for table and picture.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Partition a data set over sites as a run with these settings would, and draw the result."""
    from dandelion.settings.gather import gather
    from server.reporting.data_distribution import (
        SHARDS_CSV,
        SHARDS_JSON,
        SHARDS_PNG,
        draw,
        summarize_partition,
        title_of,
        write,
    )
    from shared.training.corpus import load_documents

    config = gather(file, [*(settings or []), f"dataset={name}"])
    documents = load_documents(config)
    corpus = corpus_of(config, documents)
    held_out = ("held out", f"{len(corpus.held_out):,} examples, evaluated by the server")
    if not as_json:
        show(name, [*describe(documents), held_out])
    shards = summarize_partition(corpus, config.federation.num_clients)
    show_table(table_of(shards), as_json)
    out.mkdir(parents=True, exist_ok=True)
    write(shards, out)
    draw(shards, title_of(config.data), out / SHARDS_PNG)
    for each in () if as_json else (SHARDS_JSON, SHARDS_CSV, SHARDS_PNG):
        say(str(out / each))


def _columns_of(pairs: list[str]) -> Columns:
    """The columns that settings such as ``text-column=note`` name."""
    from dandelion.settings.gather import read_pairs
    from shared.config.schema import Config
    from shared.training.corpus import columns_of

    return columns_of(Config(read_pairs(pairs)))


def corpus_of(config: "Config", documents: Documents) -> "Corpus":
    """The corpus of a run; if the documents have classes, that of a run that classifies."""
    from shared.data.examples import examples_with_labels
    from shared.training.corpus import Corpus
    from shared.training.start import load_start

    model = load_start(config)
    if documents.labels is None or config.data.task == "classification":
        return Corpus.of(config, model)

    def examples(some: Documents) -> "Examples":
        return examples_with_labels(some, len(documents.classes), model.tokenizer.encode)

    return Corpus.split(config, documents, examples)


def describe(documents: Documents) -> list[tuple[str, str]]:
    """Names and values: number of documents, lengths, groups, classes, and the set's own split."""
    words = sorted(len(text.split()) for text in documents.texts)
    groups, labels = Counter(documents.groups), Counter(documents.labels or ())
    missing = labels.pop(UNLABELLED, 0)
    largest = ", ".join(f"{group} ({size:,})" for group, size in groups.most_common(NAMED_GROUPS))
    rows = [
        ("documents", f"{len(words):,}"),
        ("words of each", f"{words[0]:,} to {words[-1]:,}, median {median(words):,.0f}"),
        ("groups", f"{len(groups):,}: {largest}{', …' if len(groups) > NAMED_GROUPS else ''}"),
    ]
    if labels:
        shares = (f"{documents.classes[k]} {n / len(words):.1%}" for k, n in sorted(labels.items()))
        rows.append(("classes", ", ".join(shares)))
    if documents.numbers is not None:
        numbers = np.asarray(documents.numbers)
        mean, deviation = np.nanmean(numbers), np.nanstd(numbers)
        rows.append(("numbers", f"target-mean = {mean:.6g}, target-scale = {deviation:.6g}"))
    if missing:
        rows.append(("without a class", f"{missing:,}"))
    if parts := documents.parts():
        training, held_out = (len(part.texts) for part in parts)
        rows.append(("its own split", f"{training:,} to train on, {held_out:,} to evaluate on"))
    return rows


def table_of(shards: "list[ShardSummary]") -> Table:
    """A row for each site: size, length, largest groups, classes."""
    right = [Column(title, justify="right") for title in ("site", "examples", "share", "tokens")]
    table = Table(*right, "groups", *(["classes"] if shards[0].classes else []), box=SIMPLE_HEAD)
    total = sum(shard.examples for shard in shards)
    for shard in shards:
        low, middle, high = shard.lengths
        largest = [f"{group} ({size:,})" for group, size in [*shard.groups.items()][:NAMED_GROUPS]]
        row = [
            shard.site,
            f"{shard.examples:,}",
            f"{shard.examples / total:.1%}",
            f"{low}" if low == high else f"{low} to {high}, median {middle}",
            f"{len(shard.groups)}: {', '.join(largest)}",
        ]
        if shard.classes:
            sizes = {name: size for name, size in shard.classes.items() if size}
            row.append(", ".join(f"{n} {size / shard.examples:.0%}" for n, size in sizes.items()))
        table.add_row(*row)
    return table


def show(title: str, rows: list[tuple[str, str]], as_json: bool = False) -> None:
    """Print a title, and names with their values; leave out empty values."""
    if not as_json:
        say(title)
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        if value:
            table.add_row(f"  {name}", escape(value))
    show_table(table, as_json)
