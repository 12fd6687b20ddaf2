"""``dandelion export``: the model of a run as a folder, a GGUF file, or on a hub."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from dandelion.api.ledgers import ReplayedModel, ledger_of, replay_ledger
from shared.base.errors import ConfigError
from shared.base.text import LINES, escape_text
from shared.config.schema import Config


def export(  # noqa: PLR0913, PLR0917  (options of a command)
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[Path | None, typer.Option(help="A new folder: safetensors, card.")] = None,
    gguf: Annotated[Path | None, typer.Option(help="A GGUF file; adapters are merged.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the GGUF file: f32, f16 or bf16.")] = "f32",
    merge: Annotated[
        bool, typer.Option("--merge", help="Add adapters into their layers; else they go alone.")
    ] = False,
    round_: Annotated[
        int | None, typer.Option("--round", help="After which the model is taken; the last.")
    ] = None,
    push_to_hub: Annotated[str, typer.Option(metavar="OWNER/NAME", help="A repository.")] = "",
    private: Annotated[bool, typer.Option("--private", help="A new one is private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be uploaded, and upload nothing.")
    ] = False,
) -> None:
    """Write a run's model for others: a folder, a GGUF file, or a repository on the hub."""
    from dandelion.export.formats.exports import export_folder, export_gguf
    from dandelion.export.hub_upload import check_name
    from server.ledger.run_folder import read_config

    if out is None and gguf is None and not push_to_hub:
        raise ConfigError("--out FOLDER, --gguf FILE or --push-to-hub OWNER/NAME expected")
    if (private or dry_run) and not push_to_hub:
        raise ConfigError("--private and --dry-run belong to --push-to-hub OWNER/NAME")
    if push_to_hub:
        check_name(push_to_hub)
    with ledger_of(run) as ledger:
        config = read_config(ledger)
        model = replay_ledger(ledger, ledger.last_round if round_ is None else round_)
    _say(f"round {model.round}, digest {model.digest}")
    with TemporaryDirectory(prefix="dandelion-") as home:
        folder = out if out is not None else Path(home, "model")
        if out is not None or push_to_hub:
            export_folder(model, config, folder, merge)
        if gguf is not None:
            _say(f"{export_gguf(model, config, gguf, dtype)}")
        if out is not None:
            _say(f"{folder}")
        if push_to_hub:
            _push(folder, push_to_hub, private, dry_run, (model, config))


def _push(
    folder: Path, name: str, private: bool, dry_run: bool, of: tuple[ReplayedModel, Config]
) -> None:
    """Upload a folder, or show its files."""
    from dandelion.export.hub_upload import files_of, push
    from server.reporting.status_line import size_text

    model, config = of
    for path in files_of(folder):
        _say(f"{size_text(path.stat().st_size):>9}  {path.relative_to(folder)}")
    if dry_run:
        _say(f"nothing was uploaded to {name}")
        return
    message = f"{Path(config.model.name).name} after round {model.round}, digest {model.digest}"
    _say(push(folder, name, private, message))


def _say(text: str) -> None:
    typer.echo(escape_text(text, LINES))
