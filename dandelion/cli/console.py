"""What all commands share: one console, one way to print, and their common options."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType

from dandelion.monitor.tables import all_rows, json_text, print_table
from dandelion.settings.command_options import complete_setting
from shared.base.text import LINES, escape_text

console = Console()


def _alone(context: typer.Context, is_json: bool) -> bool:
    """Send all but the JSON to standard error until the command ends: a pipe gets JSON alone."""
    console.stderr = is_json
    context.call_on_close(lambda: setattr(console, "stderr", False))
    return is_json


SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting; repeatable.", autocompletion=complete_setting
    ),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="A TOML file of settings.")]
ResumeOption = Annotated[
    Path | None, typer.Option("--resume", help="Continue the run in this folder.")
]
RunNameOption = Annotated[str, typer.Option("--name", help="Name of the run folder.")]
FolderNameOption = Annotated[str, typer.Option("--name", help="Name of the folder.")]
HomeOption = Annotated[Path | None, typer.Option("--home", help="Folder of all files.")]
StockOption = Annotated[
    bool, typer.Option("--stock", help="Run Flower's programs unpatched, with all their waits.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", callback=_alone, help="Print JSON in place of tables.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Go on until ^C.")]


def say(text: str) -> None:
    """Print a line as it is: neither wrapped nor coloured, and brackets are no markup.

    Characters that a terminal would obey are shown as escapes: a text may quote a peer.
    """
    console.print(escape_text(text, LINES), soft_wrap=True, highlight=False, markup=False)


def show_table(table: RenderableType, as_json: bool = False) -> None:
    """Print a table, whole names and numbers in it, or its rows as JSON."""
    if as_json:
        show_json(all_rows(table))
    else:
        print_table(console, table)


def show_run(folder: Path, as_json: bool) -> None:
    """Print the summary of a run that has ended, as a table or as JSON."""
    from dandelion.monitor.progress import read_summary, show_summary

    if as_json:
        show_json(read_summary(folder))
    else:
        show_summary(console, folder)


def show_json(document: object) -> None:
    """Print a document as JSON on standard output."""
    sys.stdout.write(f"{json_text(document)}\n")
