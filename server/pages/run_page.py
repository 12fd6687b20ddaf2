"""``report.html``: a run on one page that needs neither network nor script."""

from pathlib import Path

from server.ledger.reader import LedgerReader
from server.pages import sections
from server.pages.facts import identity, setting_rows
from server.pages.html import Html, PagePart, element, page
from server.reporting import data_distribution
from server.reporting.loss_plot import Curves
from shared.base.files import write_atomically
from shared.config.schema import Config

PAGE_FILE = "report.html"


def write_page(folder: Path, ledger: LedgerReader, config: Config, out: Path | None = None) -> Path:
    """Write the report of a run, finished or not; return the file.

    Args:
        folder: of the run.
        ledger: of the run.
        config: of the run.
        out: the file; by default ``report.html`` in the folder.
    """
    path = out or folder / PAGE_FILE
    write_atomically(path, run_page(folder, ledger, config).encode())
    return path


def run_page(folder: Path, ledger: LedgerReader, config: Config) -> str:
    """The text of the report."""
    facts, curves = identity(folder, ledger, config), Curves.of(ledger)
    shards = data_distribution.read(folder)
    parts = [
        sections.show_curves(ledger, curves, config),
        sections.show_costs(ledger),
        sections.show_sites(ledger, shards),
        sections.show_refusals(ledger),
        sections.show_privacy(ledger, config),
        sections.show_classes(folder),
        sections.show_samples(folder),
        sections.show_settings(setting_rows(config)),
        sections.show_identity(facts.items()),
    ]
    title = f"Run {facts['run']}"
    about = f"{facts['model']}, {facts['trained']}; {facts['data']}; {facts['method']}"
    shown = [each for each in parts if each is not None]
    body = [
        element("a", "Skip to the curves", href="#curves", class_="skip"),
        element("header", element("h1", title), element("p", about, class_="soft"), _links(shown)),
        element("main", sections.headline(ledger, curves), *(each.html for each in shown)),
    ]
    return page(f"{title}: Dandelion", Html("".join(body)))


def _links(parts: list[PagePart]) -> Html:
    """Links to the parts of the page."""
    links = [element("li", element("a", each.title, href=f"#{each.name}")) for each in parts]
    return element("nav", element("ul", *links), aria_label="Parts of this page")
