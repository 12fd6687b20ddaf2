"""``dandelion ledger``: look at a run's record, prove it, rebuild any round from it."""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from server.ledger.lineage import newest_dropped
from server.ledger.reader import LedgerReader
from server.reporting.status_line import size_text
from shared.base.errors import ConfigError

if TYPE_CHECKING:  # torch takes a second, and ``--help`` needs none of it
    from shared.protocol.entry import Entry
    from shared.training.oracle import Oracle

app = typer.Typer(no_args_is_help=True, help="Show, verify and replay a run's ledger.")
console = Console()
HEAD = ("round", "rate", "numbers", "bytes", "held out")
Round = tuple[int, bytes]  # and its digest
Folder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@app.command()
def show(run: Folder, last: Annotated[int, typer.Option(help="How many rounds.")] = 10) -> None:
    """Print what the ledger is of, and its last rounds."""
    with ledger_of(run) as ledger:
        say(f"run    {ledger.header('run').hex()}")
        say(f"base   {ledger.header('base').hex()}")
        say(f"rounds {ledger.last_round:,} in {size_text(ledger.entry_bytes())} of entries")
        columns = [Column(name, justify="right") for name in HEAD]
        table = Table(*columns, "digest", box=SIMPLE_HEAD, pad_edge=False)
        for round_ in range(max(1, ledger.last_round - last + 1), ledger.last_round + 1):
            table.add_row(*_row(ledger, round_))
    console.print(table)


@app.command()
def verify(run: Folder) -> None:
    """Rebuild the parameters from base model and ledger; compare every recorded digest."""
    from server.ledger.snapshots import rebuild_each_
    from shared.replica.replica import check_digest

    with ledger_of(run) as ledger:
        replica, last = learner_of(ledger).replica, ledger.last_round
        compared = reached = 0
        start = [(0, replica.digest())]
        for round_, digest in _shown(
            itertools.chain(start, rebuild_each_(replica, ledger, last)), last
        ):
            recorded = ledger.digest(round_)
            check_digest(round_, digest, recorded)
            compared += recorded is not None
            reached += 1
        leapt, gone = last + 1 - reached, newest_dropped(ledger.payloads(0, last))
    say(
        f"{last - leapt:,} rounds replayed, {compared:,} digests equal; "
        f"digest {replica.digest().hex()}"
    )
    if leapt:
        say(
            f"{leapt:,} rounds were leapt over, from snapshot to snapshot: gradients up to round "
            f"{gone} were dropped when a later snapshot was there"
        )


@app.command()
def replay(
    run: Folder,
    round_: Annotated[int, typer.Option("--round", help="Up to and with this round.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
) -> None:
    """Write the model as of a round, in Hugging Face format."""
    from server.ledger.snapshots import rebuild_

    with ledger_of(run) as ledger:
        if not 0 <= round_ <= ledger.last_round:
            raise ConfigError(f"--round 0 to {ledger.last_round} expected, got {round_}")
        oracle = learner_of(ledger)
        rebuild_(oracle.replica, ledger, round_)
        if (digest := ledger.digest(round_)) is not None:
            oracle.replica.check(digest)
    oracle.language_model.save(out)
    say(f"round {round_}, digest {oracle.replica.digest().hex()}: {out.resolve()}")


@contextmanager
def ledger_of(run: Path) -> Iterator[LedgerReader]:
    """The ledger of a run folder, checked."""
    from server.ledger.run_folder import LEDGER

    with closing(LedgerReader.open(run / LEDGER)) as ledger:
        yield ledger


def learner_of(ledger: LedgerReader) -> "Oracle":
    """The untrained model that a run started from.

    Raises:
        DivergedError: what its settings give here is another one.
    """
    from server.ledger.run_folder import check_base, read_config
    from shared.training.oracle import Oracle

    oracle = Oracle.of(read_config(ledger))
    check_base(ledger, oracle)
    return oracle


def say(line: str) -> None:
    """Print a line as it is, however long."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def _shown(rounds: Iterable[Round], last: int) -> Iterable[Round]:
    """The rounds as they come, with a bar where there is a terminal."""
    return track(
        rounds,
        "verifying",
        total=last + 1,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _numbers(entry: "Entry") -> str:
    """What an entry holds: groups of numbers, a gradient, or what is left of one."""
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
