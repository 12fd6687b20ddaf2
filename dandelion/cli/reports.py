"""``dandelion report``: a run on one page, written again at any time from its ledger."""

from pathlib import Path
from typing import Annotated

import typer

from dandelion.api.ledgers import ledger_of
from dandelion.cli.console import RunArgument, say


def report(
    folder: RunArgument,
    out: Annotated[Path | None, typer.Option(help="The file; by default RUN/report.html.")] = None,
) -> None:
    """Write report.html of a run, also while it trains: curves, costs, sites, settings, hashes."""
    from server.ledger.run_folder import read_config
    from server.pages.run_page import write_page

    with ledger_of(folder) as ledger:
        path = write_page(folder, ledger, read_config(ledger), out)
    say(f"{path}")
