"""``dandelion ledger``: shows a run's ledger, verifies it, and replays it up to any round."""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Column, Table

from dandelion.cli.console import JsonOption, RunArgument, console, say, show_table
from server.ledger.lineage import newest_dropped
from server.ledger.reader import LedgerReader
from server.reporting.status_line import size_text
from shared.base.errors import ConfigError

if TYPE_CHECKING:  # torch takes a second, and ``--help`` needs none of it
    from shared.protocol.entry import Entry
    from shared.training.oracle import Oracle

app = typer.Typer(no_args_is_help=True, help="Show, verify and replay a run's ledger.")
COLUMNS = ("round", "rate", "numbers", "bytes", "held out")
RoundDigest = tuple[int, bytes]


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
    from server.ledger.run_folder import read_config
    from server.ledger.snapshots import rebuild_each_
    from server.steps.learning_rates import LearningRates
    from shared.replica.replica import check_digest

    with ledger_of(run) as ledger:
        replica, last = base_oracle(ledger).replica, ledger.last_round
        compared = replayed = 0
        unrecorded: list[int] = []
        start = [(0, replica.digest())]
        for round_, digest in _track(
            itertools.chain(start, rebuild_each_(replica, ledger, last)), last
        ):
            recorded = ledger.digest(round_)
            check_digest(round_, digest, recorded)
            compared += recorded is not None
            unrecorded += [round_] if recorded is None else []
            replayed += 1
        rates = LearningRates(read_config(ledger), ledger, replica.model.layout.parameters).verify()
        bridged, dropped = last + 1 - replayed, newest_dropped(ledger.payloads(0, last))
    say(
        f"{last - bridged:,} rounds replayed, {compared:,} digests equal; "
        f"digest {replica.digest().hex()}"
    )
    if rates:
        say(f"{rates:,} learning rates follow from the rounds before")
    if unrecorded:
        say(f"no digest is recorded of {len(unrecorded):,} rounds: {_ranges(unrecorded)}")
    if bridged:
        say(
            f"{bridged:,} rounds were not replayed but bridged by snapshots: gradients up to round "
            f"{dropped} were dropped after a later snapshot was written"
        )


@app.command()
def replay(
    run: RunArgument,
    round_: Annotated[int, typer.Option("--round", help="The last round to replay.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
) -> None:
    """Write the model after a round, in Hugging Face format."""
    from server.ledger.snapshots import rebuild_

    with ledger_of(run) as ledger:
        if not 0 <= round_ <= ledger.last_round:
            raise ConfigError(f"--round 0 to {ledger.last_round} expected, got {round_}")
        oracle = base_oracle(ledger)
        rebuild_(oracle.replica, ledger, round_)
        if (digest := ledger.digest(round_)) is not None:
            oracle.replica.check(digest)
    oracle.language_model.save(out)
    say(f"round {round_}, digest {oracle.replica.digest().hex()}: {out.resolve()}")


@contextmanager
def ledger_of(run: Path) -> Iterator[LedgerReader]:
    """Open the ledger of a run folder, and check it.

    Raises:
        LedgerError: there is no ledger, or it is damaged.
    """
    from server.ledger.run_folder import LEDGER

    with closing(LedgerReader.open(run / LEDGER)) as ledger:
        yield ledger


def base_oracle(ledger: LedgerReader) -> "Oracle":
    """Rebuild the oracle with the untrained model that a run started from.

    Raises:
        DivergedError: the run's settings give another model on this machine.
    """
    from server.ledger.run_folder import check_base, read_config
    from shared.training.oracle import Oracle

    oracle = Oracle.of(read_config(ledger))
    check_base(ledger, oracle)
    return oracle


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


def _ranges(rounds: list[int]) -> str:
    """Ascending numbers in words, as ``3, 7 to 9``."""
    there = set(rounds)
    starts = [k for k in rounds if k - 1 not in there]
    ends = [k for k in rounds if k + 1 not in there]
    pairs = zip(starts, ends, strict=True)
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in pairs)


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
