"""The terminal of all commands: one console, one way to print, and the options that they share."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()

SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting; repeatable.")
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
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Go on until ^C.")]


def say(text: str) -> None:
    """Print a line as it is: neither wrapped nor coloured, and brackets are no markup."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)
