"""What all commands share: one console, one way to print, and their common options."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType

from dandelion.monitor.tables import print_table
from shared.base.errors import ConfigError
from shared.base.options import Value
from shared.base.text import LINES, escape_text

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
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Go on until ^C.")]

AppOption = Annotated[
    str, typer.Option("--app", metavar="MODULE:NAME", help="One's own problem: setting app.")
]

COMMON = "Common settings"  # a panel of ``dandelion run --help``; each is the setting of its name
ModeOption = Annotated[
    str, typer.Option("--mode", help="Training mode, such as zo or fo.", rich_help_panel=COMMON)
]
ModelOption = Annotated[
    str,
    typer.Option("--model", help="Model; dandelion models lists some.", rich_help_panel=COMMON),
]
DatasetOption = Annotated[
    str,
    typer.Option("--dataset", help="Data set; dandelion data lists some.", rich_help_panel=COMMON),
]
RoundsOption = Annotated[
    int | None, typer.Option("--rounds", help="Setting num-rounds.", rich_help_panel=COMMON)
]
ClientsOption = Annotated[
    int | None, typer.Option("--clients", help="Setting num-clients.", rich_help_panel=COMMON)
]
QueriesOption = Annotated[
    int | None,
    typer.Option("--queries", help="Random directions of a round.", rich_help_panel=COMMON),
]
LearningRateOption = Annotated[
    float | None,
    typer.Option("--lr", "--learning-rate", help="Learning rate.", rich_help_panel=COMMON),
]
EpsOption = Annotated[
    float | None, typer.Option("--eps", help="Smoothing radius.", rich_help_panel=COMMON)
]


def say(text: str) -> None:
    """Print a line as it is: neither wrapped nor coloured, and brackets are no markup.

    Characters that a terminal would obey are shown as escapes: a text may quote a peer.
    """
    console.print(escape_text(text, LINES), soft_wrap=True, highlight=False, markup=False)


def show_table(table: RenderableType, as_json: bool = False) -> None:
    """Print a table, whole names and numbers in it, or its rows as JSON."""
    print_table(console, table, as_json)


def collect_options(pairs: Sequence[str], options: Mapping[str, Value | None]) -> dict[str, Value]:
    """The options that are given, as settings; None and empty text mean that one is not.

    Args:
        pairs: ``key=value`` of ``--set``.
        options: by key of the setting.

    Raises:
        ConfigError: a setting is given by both.
    """
    given = {key: value for key, value in options.items() if value not in (None, "")}
    keys = {pair.partition("=")[0].strip().replace("_", "-") for pair in pairs}
    if twice := sorted(keys & given.keys()):
        raise ConfigError(f"{twice[0]} is given by --set and by its own option; give it once")
    return {key: value for key, value in given.items() if value is not None}
