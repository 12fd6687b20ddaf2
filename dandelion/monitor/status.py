"""The status of a run, read from its ledger: rounds, loss, bytes, and a table of its nodes."""

import time
import tomllib
from contextlib import closing
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from dandelion.monitor.progress import time_text
from server.ledger.reader import LedgerReader
from server.ledger.run_folder import CONFIG, LEDGER, read_config
from server.ledger.summaries import SiteState
from server.reporting.round_worth import verdict_of, worth_of_run
from server.reporting.status_line import size_text

TEXT_COLUMNS = ("site", "device", "last error")


def render(folder: Path) -> RenderableType:
    """Render a line about the run, a table of its sites, and what limits its rounds.

    Raises:
        LedgerError: the folder has no ledger, or a damaged one.
    """
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        rounds, last = rounds_of(folder, ledger), ledger.last_round
        parts: list[RenderableType] = [
            _title(folder, ledger, rounds),
            _nodes(ledger.site_states(), last),
        ]
        config = read_config(ledger)
        if (worth := worth_of_run(config, ledger)) is not None:
            parts.append(verdict_of(worth, config))
        return Group(*parts)


def rounds_of(folder: Path, ledger: LedgerReader) -> int:
    """The number of rounds that the run should have, by its last resumption or else its start."""
    try:
        settings = tomllib.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return int(settings["num-rounds"])
    except (OSError, ValueError, KeyError):
        return read_config(ledger).training.rounds


def watch(folder: Path, console: Console, every_s: float) -> None:
    """Show the run's status, updated every ``every_s`` seconds, until ^C."""
    with Live(render(folder), console=console, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(every_s)
                live.update(render(folder), refresh=True)
        except KeyboardInterrupt:
            return


def _title(folder: Path, ledger: LedgerReader, rounds: int) -> str:
    last = ledger.metrics_of(ledger.last_round)
    evaluations, skipped = ledger.evaluations(), ledger.count_skips()
    up, down = ledger.traffic_totals("up").payload, ledger.traffic_totals("down").payload
    parts = [f"run {escape(folder.name)}", f"round {last.round if last else 0} of {rounds}"]
    if last:
        parts += [
            "no loss sent" if last.loss is None else f"loss {last.loss:.3f}",
            f"last round {time_text(last.seconds)}, {last.timestamp}",
        ]
    parts += [f"held out {evaluations[-1].loss:.3f}"] if evaluations else []
    parts += [f"up {size_text(up)}", f"down {size_text(down)}"]
    return "  ".join([*parts, f"{skipped} rounds skipped"] if skipped else parts)


def _nodes(nodes: list[SiteState], last: int) -> Table:
    table = Table()
    for name in ("site", "device", "round", "lag", "loss", "measuring", "up", "down", "last error"):
        table.add_column(name, justify="left" if name in TEXT_COLUMNS else "right")
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
            escape(node.error or ""),
        )
    return table
