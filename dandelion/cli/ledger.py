"""``dandelion ledger``: shows a run's ledger, verifies it, and replays it up to any round."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Column, Table

from dandelion.api.ledgers import RoundDigest, ledger_of, replay_ledger, verify_ledger
from dandelion.cli.console import JsonOption, RunArgument, console, say, show_table
from server.ledger.reader import LedgerReader
from server.reporting.status_line import size_text

if TYPE_CHECKING:  # torch takes a second, and ``--help`` needs none of it
    from shared.protocol.entry import Entry

app = typer.Typer(no_args_is_help=True, help="Show, verify and replay a run's ledger.")
COLUMNS = ("round", "rate", "numbers", "bytes", "held out")


@app.command()
def show(
    run: RunArgument,
    last: Annotated[int, typer.Option(help="Number of rounds to show.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Show which run the ledger is of, and its last rounds."""
    with ledger_of(run) as ledger:
        if not as_json:
            say(f"run    {ledger.header('run').hex()}")
            say(f"base   {ledger.header('base').hex()}")
            say(f"rounds {ledger.last_round:,} in {size_text(ledger.entry_bytes())} of entries")
        columns = [Column(name, justify="right") for name in COLUMNS]
        table = Table(*columns, "digest", box=SIMPLE_HEAD, pad_edge=False)
        for round_ in range(max(1, ledger.last_round - last + 1), ledger.last_round + 1):
            table.add_row(*_row(ledger, round_))
    show_table(table, as_json)


@app.command()
def verify(run: RunArgument) -> None:
    """Rebuild the parameters from base model and ledger, and compare every recorded digest."""
    with ledger_of(run) as ledger:
        result = verify_ledger(ledger, _track)
    for line in result.lines():
        say(line)


@app.command()
def replay(
    run: RunArgument,
    round_: Annotated[int, typer.Option("--round", help="The last round to replay.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
) -> None:
    """Write the model after a round, in Hugging Face format."""
    with ledger_of(run) as ledger:
        model = replay_ledger(ledger, round_)
    say(f"round {round_}, digest {model.digest}: {model.save(out)}")


def _track(rounds: Iterable[RoundDigest], last: int) -> Iterable[RoundDigest]:
    """Pass the rounds on, and show a bar if there is a terminal."""
    return track(
        rounds,
        "verifying",
        total=last + 1,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _numbers(entry: "Entry") -> str:
    """Describe an entry: slots of numbers, a gradient, a dropped gradient, or a rewind."""
    if entry.back_to is not None:
        return f"back to {entry.back_to}" if entry.undoes else "pause"
    gradient = "dropped" if entry.dropped else "gradient" if entry.payload else ""
    each = len(entry.slots[0].differences) if entry.slots else 0
    return " + ".join(filter(None, [f"{len(entry.slots)} × {each}" if each else "", gradient]))


def _row(ledger: LedgerReader, round_: int) -> tuple[str, ...]:
    entry, digest = ledger.entry(round_), ledger.digest(round_)
    evaluation = ledger.evaluation(round_)
    return (
        str(round_),
        f"{entry.learning_rate:.3g}",
        _numbers(entry),
        str(len(entry.encode())),
        "" if evaluation is None else f"{evaluation:.4f}",
        digest.hex() if digest else "not noted",
    )
