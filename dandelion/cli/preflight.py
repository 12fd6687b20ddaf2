"""``dandelion preflight``: tries settings before a run, and suggests better ones."""

from typing import TYPE_CHECKING

import typer
from rich.table import Table

from dandelion.api.preflights import try_settings
from dandelion.cli.console import (
    ConfigOption,
    JsonOption,
    RunNameOption,
    SettingsOption,
    console,
    say,
    show_json,
    show_table,
)
from dandelion.settings.command_options import check_common, common_settings
from shared.base.options import Value

if TYPE_CHECKING:  # torch takes a second, and ``--help`` needs none of it
    from server.preflight.judge import Preflight, Rates

EXIT_STATUS = {"fine": 0, "doubtful": 1, "refused": 2}


@common_settings()
def preflight(
    common: dict[str, Value],
    settings: SettingsOption = None,
    config: ConfigOption = None,
    name: RunNameOption = "",
    as_json: JsonOption = False,
) -> None:
    """Measure the effect of eps and learning rate on the model that a run would start from.

    Status 0: the settings are fine; 1: others are suggested; 2: the settings cannot work.
    """
    from dandelion.settings.gather import gather

    check_common(settings or [], common)
    chosen = gather(config, settings or [], None, **{**common, "run-name": name})
    outcome, path = try_settings(chosen, console)
    if as_json:
        show_json(outcome.record())
    else:
        show(outcome)
        say(f"{path}")
    raise typer.Exit(EXIT_STATUS[outcome.verdict])


def show(outcome: "Preflight") -> None:
    """Print the tables, the reasons and the suggestion of a preflight."""
    if outcome.eps:
        show_table(_eps_table(outcome))
    say(
        f"gradient norm about {outcome.gradient_norm:.3g}; {outcome.batch_share:.0%} of the "
        "slopes' variance comes from the batches; the cosine of a round's estimate to it is "
        f"{outcome.cosine:.2g}"
    )
    for rates in outcome.rates:
        show_table(_rates_table(rates))
    for reason in outcome.reasons:
        say(reason)
    words = " ".join(f"--set {key}={value:g}" for key, value in outcome.suggestion().items())
    say(f"{outcome.verdict}{': use ' + words if words else ''}")


def _eps_table(outcome: "Preflight") -> Table:
    titles = ("eps", "difference", "rounding", "bend", "signal to noise")
    table = Table(*titles, title=f"loss {outcome.loss:.4f}, its rounding {outcome.loss_noise:.1g}")
    for row in outcome.eps:
        table.add_row(
            f"{row.eps:g}",
            *(f"{value:.2g}" for value in (row.difference, row.rounding, row.bend)),
            f"{row.signal_to_noise:,.3g}",
            style="bold" if row.eps == outcome.given_eps else None,
        )
    return table


def _rates_table(rates: "Rates") -> Table:
    table = Table(rates.key, "loss after one step", title="one step, judged on other examples")
    for rate, change in rates.change.items():
        mark = " ← falls most" if rate == rates.best else ""
        style = "bold" if rate == rates.given else None
        table.add_row(f"{rate:.3g}", f"{change:+.4g}{mark}", style=style)
    return table
