"""``dandelion models``: lists models, and estimates the size and memory of one."""

from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from dandelion.cli.console import JsonOption, say, show_table
from server.reporting.status_line import size_text

Name = Annotated[
    str, typer.Argument(help="A listed model, a folder, a GGUF file, or owner/name on the hub.")
]


def models(name: Name = "", as_json: JsonOption = False) -> None:
    """List the models that need no hub, or show the size and memory of one."""
    if name:
        _explain(name, as_json)
    else:
        _list(as_json)


def _list(as_json: bool) -> None:
    from dandelion.bench.memory import shapes_of
    from shared.models.gpt2 import SHAPES
    from shared.models.packaged import BPE, PACKAGED

    table = Table("model", Column("parameters", justify="right"), "what", box=SIMPLE_HEAD)
    for name, shape in SHAPES.items():
        tokens = "GPT-2's tokens" if shape.vocabulary == BPE else "bytes"
        table.add_row(
            name,
            f"{shapes_of(name)[0].parameters:,}",
            f"untrained GPT-2 over {tokens}: width {shape.width}, {shape.layers} layers, "
            f"{shape.heads} heads, {shape.positions} positions",
        )
    for name, row in PACKAGED.items():
        table.add_row(name, f"{row.parameters:,}", row.about)
    show_table(table, as_json)
    if as_json:
        return
    say(
        "A model can also be any causal language model or sequence classifier in Hugging Face's "
        "format, by folder or by owner/name on the hub, or a GGUF file."
    )


def _explain(name: str, as_json: bool) -> None:
    from dandelion.bench.memory import DTYPE_BYTES, estimate, shapes_of
    from shared.models.load import check_name

    check_name(name)
    layout, module = shapes_of(name)
    config = module.config
    if not as_json:
        say(f"{name}: {type(module).__name__}")
    positions = getattr(config, "max_position_embeddings", None) or "any number of"
    line = (
        f"{layout.parameters:,} parameters in {len(layout.tensors)} tensors, "
        f"vocabulary {config.vocab_size:,}, {positions} positions"
    )
    if not as_json:
        say(line)
    columns = [Column(title, justify="right") for title in ("replica", "a query adds", "with Adam")]
    table = Table("", *columns, box=SIMPLE_HEAD)
    for dtype in DTYPE_BYTES:
        memory = estimate(layout, dtype)
        table.add_row(dtype, *map(size_text, (memory.replica, memory.query, memory.adam)))
    show_table(table, as_json)
    if as_json:
        return
    say(
        "The activations of a batch come on top. A query adds a scratch vector and copies of the "
        "small tensors; scalars and SGD need nothing else."
    )
