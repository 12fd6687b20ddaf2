"""A run as it stands, from its ledger: rounds, loss, bytes; nodes: device, lag, last error."""

import time
import tomllib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from dandelion.monitor.progress import time_text
from server.ledger.ledger import Ledger
from server.ledger.run_folder import CONFIG, LEDGER, read_config
from server.reporting.status_line import size_text

NODES = """
SELECT t.site, (SELECT s.device FROM sites s WHERE s.site = t.site),
       (SELECT max(c.round) FROM contributions c WHERE c.site = t.site),
       (SELECT c.loss FROM contributions c WHERE c.site = t.site ORDER BY c.round DESC LIMIT 1),
       (SELECT c.seconds FROM contributions c WHERE c.site = t.site ORDER BY c.round DESC LIMIT 1),
       sum(t.payload * (t.direction = 'up')), sum(t.payload * (t.direction = 'down')),
       (SELECT r.reason || ' in round ' || r.round || ': ' || r.detail FROM refusals r
        WHERE r.site = t.site ORDER BY r.id DESC LIMIT 1)
FROM traffic t GROUP BY t.site ORDER BY t.site"""
LONGEST_ERROR = 70
TEXTS = ("site", "device", "last error")


@dataclass(frozen=True)
class NodeRow:
    """What the ledger knows of one site."""

    site: str
    device: str | None  # what it computes on; None: it was never taken in
    round: int | None  # the last that it contributed to
    loss: float | None
    seconds: float | None
    bytes_up: int
    bytes_down: int
    error: str | None


def node_rows(ledger: Ledger) -> list[NodeRow]:
    """Every site that was ever sent something."""
    return [NodeRow(*row) for row in ledger.rows(NODES)]


def picture_of(folder: Path) -> RenderableType:
    """The run's head line and a table of its nodes.

    Raises:
        LedgerError: the folder holds no ledger, or a damaged one.
    """
    with closing(Ledger.open(folder / LEDGER)) as ledger:
        rounds, last = rounds_of(folder, ledger), ledger.last_round
        return Group(_head(folder, ledger, rounds), _nodes(node_rows(ledger), last))


def rounds_of(folder: Path, ledger: Ledger) -> int:
    """How many rounds the run is to have: as it was resumed last, or else as it was begun."""
    try:
        settings = tomllib.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return int(settings["num-rounds"])
    except (OSError, ValueError, KeyError):
        return read_config(ledger).training.rounds


def watch(folder: Path, console: Console, every_s: float) -> None:
    """Show the run again and again, until it is interrupted."""
    with Live(picture_of(folder), console=console, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(every_s)
                live.update(picture_of(folder), refresh=True)
        except KeyboardInterrupt:
            return


def _head(folder: Path, ledger: Ledger, rounds: int) -> str:
    last = ledger.rows(
        "SELECT round, loss, seconds, timestamp FROM metrics ORDER BY round DESC LIMIT 1"
    )
    held_out = ledger.rows("SELECT loss FROM evaluations ORDER BY round DESC LIMIT 1")
    skipped = ledger.rows("SELECT count(*) FROM skips")[0][0]
    up, down = ledger.rows(
        "SELECT coalesce(sum(payload * (direction = 'up')), 0), "
        "coalesce(sum(payload * (direction = 'down')), 0) FROM traffic"
    )[0]
    parts = [f"run {escape(folder.name)}", f"round {last[0][0] if last else 0} of {rounds}"]
    if last:
        parts += [f"loss {last[0][1]:.3f}", f"last round {time_text(last[0][2])}, {last[0][3]}"]
    parts += [f"held out {held_out[0][0]:.3f}"] if held_out else []
    parts += [f"up {size_text(up)}", f"down {size_text(down)}"]
    return "  ".join([*parts, f"{skipped} rounds skipped"] if skipped else parts)


def _nodes(nodes: list[NodeRow], last: int) -> Table:
    table = Table()
    for name in ("site", "device", "round", "lag", "loss", "measuring", "up", "down", "last error"):
        table.add_column(name, justify="left" if name in TEXTS else "right")
    for node in nodes:
        table.add_row(
            escape(node.site),
            escape(node.device or "-"),
            "-" if node.round is None else str(node.round),
            "-" if node.round is None else str(last - node.round),
            "-" if node.loss is None else f"{node.loss:.3f}",
            "-" if node.seconds is None else time_text(node.seconds),
            size_text(node.bytes_up),
            size_text(node.bytes_down),
            escape((node.error or "")[:LONGEST_ERROR]),
        )
    return table
