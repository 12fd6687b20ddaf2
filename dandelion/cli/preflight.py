"""``dandelion preflight``: try settings out before a run, and hear what to set instead."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # torch takes a second, and ``--help`` needs none of it
    from server.preflight.judge import Preflight, Rates

console = Console()
Preset = Annotated[
    str, typer.Option("--preset", "--task", help="A task with all it takes: rotten-tomatoes, …")
]
Model = Annotated[str, typer.Option(help="As --set model=…; dandelion models lists some.")]
STATUS = {"fine": 0, "doubtful": 1, "refused": 2}


def preflight(
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting; repeatable.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings.")] = None,
    name: Annotated[str, typer.Option(help="Name of the run folder.")] = "",
    preset: Preset = "",
    model: Model = "",
) -> None:
    """Measure what eps and learning rate do to the model that a run would start from.

    Status 0: the settings are fine; 1: others are suggested; 2: they cannot work.
    """
    from dandelion.settings.gather import gather
    from server.ledger.run_folder import run_folder
    from server.preflight.judge import preflight as measured
    from shared.training.corpus import Corpus
    from shared.training.held_out import held_out
    from shared.training.oracle import Oracle

    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    chosen = gather(
        config, settings or [], None, **{"run-name": name, "preset": preset, "model": model}
    )
    if not chosen.run_name:
        chosen = chosen.replace(run_name=f"preflight-{stamp}")
    oracle = Oracle.of(chosen)
    corpus = Corpus.of(chosen, oracle.language_model)
    with console.status("measuring rounding, slopes and trial steps; a large model takes minutes"):
        found = measured(chosen, oracle, held_out(corpus, oracle.language_model))
    show(found)
    say(f"{found.write(run_folder(chosen))}")
    raise typer.Exit(STATUS[found.verdict])


def show(found: "Preflight") -> None:
    """Print both tables, the reasons and the suggestion."""
    if found.eps:
        console.print(_eps_table(found))
    say(
        f"gradient about {found.gradient_norm:.3g} long; {found.batch_share:.0%} of the slopes' "
        f"variance comes from the batches; a round's estimate has cosine {found.cosine:.2g} to it"
    )
    for rates in found.rates:
        console.print(_rates_table(rates))
    for reason in found.reasons:
        say(reason)
    words = " ".join(f"--set {key}={value:g}" for key, value in found.suggestion().items())
    say(f"{found.verdict}{': use ' + words if words else ''}")


def _eps_table(found: "Preflight") -> Table:
    head = ("eps", "difference", "rounding", "bend", "signal to noise")
    table = Table(*head, title=f"loss {found.loss:.4f}, its rounding {found.loss_noise:.1g}")
    for row in found.eps:
        table.add_row(
            f"{row.eps:g}",
            *(f"{value:.2g}" for value in (row.difference, row.rounding, row.bend)),
            f"{row.signal_to_noise:,.3g}",
            style="bold" if row.eps == found.given_eps else None,
        )
    return table


def _rates_table(rates: "Rates") -> Table:
    table = Table(rates.key, "loss after one step", title="one step, judged on other examples")
    for rate, change in rates.change.items():
        mark = " ← falls most" if rate == rates.best else ""
        style = "bold" if rate == rates.given else None
        table.add_row(f"{rate:.3g}", f"{change:+.4g}{mark}", style=style)
    return table


def say(line: str) -> None:
    """Print a line as it is, however long."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)
