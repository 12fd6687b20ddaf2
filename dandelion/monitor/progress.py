"""Progress of a run in the terminal: a moving line while it trains, a table when it is done."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

from dandelion.monitor.notebook import NotebookLine
from dandelion.monitor.time_left import TimeLeft, time_left_text
from server.reporting.sample_pages import read_samples, sample_lines
from server.reporting.status_line import size_text, state_text
from shared.base.text import quote_command

if TYPE_CHECKING:  # torch takes a second, and ``--help`` needs none of it
    from server.reporting.report import Report

PLAIN_EVERY_S = 10.0  # between two lines if there is no terminal
UNWRAPPED = 10_000  # columns of what is no terminal: no line is wrapped
FILES = (  # that a summary names, if they are there
    *(("report", "report.html"), ("picture", "loss.png")),
    *(("model", "model"), ("ledger", "ledger.sqlite")),
)
BAR_FROM_COLUMNS = 110  # a terminal of this width has room for a bar
NUMBERS = (
    ("mae", "mean error"),
    ("rmse", "RMSE"),
    ("pearson", "Pearson's r"),
    ("spearman", "Spearman's ρ"),
)
SCORES = (  # of tasks, as percentages: their names and titles
    *(("accuracy", "accuracy"), ("f1", "F1"), ("macro_f1", "macro F1")),
    *(("exact-match", "exact match"), ("token-f1", "token F1"), ("rouge-l", "ROUGE-L")),
)


def time_text(seconds: float) -> str:
    """Format seconds for readers: 0.8 s, 42 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


class RunProgress:
    """Shows round, losses, bytes both ways and time left; is called after every round."""

    def __init__(self, console: Console) -> None:
        self._console = console
        text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
        self._progress = Progress(
            *([BarColumn(bar_width=20)] if console.width >= BAR_FROM_COLUMNS else []),
            text,
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=None)
        self._cell = NotebookLine() if console.is_jupyter and not console.quiet else None
        self._left: TimeLeft | None = None
        self._printed_at = 0.0
        self._report: Report | None = None

    def __enter__(self) -> "RunProgress":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        if kind is not None and self._report is not None:
            resume = quote_command("dandelion", "run", "--resume", self._report.folder)
            self._console.print(
                f"stopped; continue with: {resume}",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )

    def __call__(self, report: "Report", round_: int) -> None:
        """Show the state after ``round_``."""
        self._report, rounds, now = report, report.config.training.rounds, time.monotonic()
        if self._left is None:
            self._left = TimeLeft(rounds, report.config.evaluation.interval)
        self._left.note(round_, now)
        left = time_left_text(self._left)
        text = f"round {round_}/{rounds}  {state_text(report, round_)}  {left}".rstrip()
        self._progress.update(self._task, completed=round_, total=rounds, description=text)
        if self._cell is not None:
            self._cell.show(text, round_ >= rounds)
        self._show_samples(Path(report.folder), round_)
        if self._console.is_terminal or self._cell is not None:
            return
        if self._printed_at == 0.0 or now - self._printed_at > PLAIN_EVERY_S or round_ >= rounds:
            self._console.print(text, soft_wrap=True, highlight=False, markup=False)
            self._printed_at = now

    def _show_samples(self, folder: Path, round_: int) -> None:
        """Print what the model wrote at the evaluation of this round, if it wrote anything."""
        newest = next(reversed(read_samples(folder)), None)
        if newest is None or newest["round"] != round_:
            return
        for line in (f"samples of round {round_}", *sample_lines(newest)):
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a run that has ended."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def show_summary(console: Console, folder: Path) -> None:
    """Print the run's summary as a table, and the paths of its files."""
    summary = read_summary(folder)
    table = Table(title=f"run {escape(folder.name)}", show_header=False, title_style="bold")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for section in summary_sections(summary):
        for name, text in section:
            table.add_row(name, escape(text))
        table.add_section()
    wide = console if console.is_terminal else Console(file=console.file, width=UNWRAPPED)
    wide.print(table)
    files = [
        ("report", "report.html"),
        ("picture", "loss.png"),
        ("model", "model"),
        ("ledger", "ledger.sqlite"),
    ]
    for name, file in files:
        if (folder / file).exists():
            console.print(
                f"{name:<8} {folder / file}", soft_wrap=True, highlight=False, markup=False
            )


def summary_sections(s: Mapping[str, Any]) -> list[list[tuple[str, str]]]:
    """The summary as rows of name and text: what was trained, its loss, its cost, its refusals."""
    each = s["seconds"] / max(s["rounds"], 1)
    sizes = {
        size: ", ".join(
            f"{size_text(s[f'{size}_bytes_{way}_per_client_round'])} {way}"
            for way in ("up", "down")
        )
        for size in ("payload", "message")
    }
    return [
        [
            ("mode", f"{s['mode']}, q = {s['queries']:,}"),
            ("model", f"{s['parameters']:,} parameters"),
            ("sites", f"{s['clients']:,}"),
            ("rounds", f"{s['rounds']:,} in {time_text(s['seconds'])}, {time_text(each)} each"),
        ],
        [
            ("held-out loss", f"{_loss(s['evaluation_loss_first'])} → "
                              f"{_loss(s['evaluation_loss_last'])} nats"),
            *_scores(s),
            ("digest", s["digest"]),
        ],
        [
            ("payload", f"{sizes['payload']} per client and round"),
            ("as messages", f"{sizes['message']} per client and round"),
            ("ledger", f"{size_text(s['ledger_bytes'])} of entries"),
        ],
        [
            ("refused replies", _refusal_text(s["refused_replies"], s["refusals"])),
            ("skipped rounds", f"{s['skipped_rounds']:,}"),
            *(
                ("rewind", f"round {at}: back to {to}, rates × {scale:.3g}; {reason}")
                for at, to, scale, reason in s.get("rewinds", [])
            ),
        ],
    ]  # fmt: skip


def _scores(s: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The task's scores at the first and the last evaluation, if it has any that are known."""
    return (
        [
            (
                f"held-out {title}",
                f"{s[f'evaluation_{name}_first']:.1%} → {s[f'evaluation_{name}_last']:.1%}",
            )
            for name, title in SCORES
            if f"evaluation_{name}_last" in s
        ]
        + [
            (
                f"held-out {title}",
                f"{s[f'evaluation_{name}_first']:.4g} → {s[f'evaluation_{name}_last']:.4g}",
            )
            for name, title in NUMBERS
            if f"evaluation_{name}_last" in s
        ]
        + [
            (f"{title} at the sites", f"{s[f'sites_{name}_last']:.1%}")
            for name, title in SCORES
            if f"sites_{name}_last" in s
        ]
    )


def _loss(value: float | None) -> str:
    return "not evaluated" if value is None else f"{value:.3f}"


def _refusal_text(total: int, reasons: Mapping[str, int]) -> str:
    each = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    return f"{total:,} ({each})" if each else f"{total:,}"
