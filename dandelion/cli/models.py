"""``dandelion models``: which models there are, and how large one is."""

from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from server.reporting.status_line import size_text

console = Console()
Name = Annotated[
    str, typer.Argument(help="A listed model, a folder, a GGUF file, or owner/name on the hub.")
]


def models(name: Name = "") -> None:
    """List the models that need no hub, or say how large one is and how much memory it takes."""
    if name:
        _explain(name)
    else:
        _list()


def _list() -> None:
    from dandelion.bench.memory_estimate import described
    from shared.models.gpt2 import SHAPES
    from shared.models.packaged import BPE, PACKAGED

    table = Table("model", Column("parameters", justify="right"), "what", box=SIMPLE_HEAD)
    for name, shape in SHAPES.items():
        of = "GPT-2's tokens" if shape.vocabulary == BPE else "bytes"
        table.add_row(
            name,
            f"{described(name)[0].parameters:,}",
            f"untrained GPT-2 over {of}: width {shape.width}, {shape.layers} layers, "
            f"{shape.heads} heads, {shape.positions} positions",
        )
    for name, row in PACKAGED.items():
        table.add_row(name, f"{row.parameters:,}", row.about)
    console.print(table)
    console.print(
        "Besides: any causal language model or sequence classifier in Hugging Face's format, by "
        "folder or by owner/name on the hub, and GGUF files.",
        soft_wrap=True,
    )


def _explain(name: str) -> None:
    from dandelion.bench.memory_estimate import BYTES, described, footprint
    from shared.models.load import check_name

    check_name(name)
    layout, module = described(name)
    config = module.config
    console.print(f"{name}: {type(module).__name__}", highlight=False, markup=False)
    positions = getattr(config, "max_position_embeddings", None) or "any number of"
    console.print(
        f"{layout.parameters:,} parameters in {len(layout.tensors)} tensors, "
        f"vocabulary {config.vocab_size:,}, {positions} positions",
        highlight=False,
    )
    columns = [Column(title, justify="right") for title in ("replica", "a query adds", "with Adam")]
    table = Table("", *columns, box=SIMPLE_HEAD)
    for dtype in BYTES:
        found = footprint(layout, dtype)
        table.add_row(dtype, *map(size_text, (found.replica, found.query, found.adam)))
    console.print(table)
    console.print(
        "Without the activations of a batch. A query adds a scratch, and copies of the small "
        "tensors; scalars and SGD need no more than that.",
        soft_wrap=True,
    )
