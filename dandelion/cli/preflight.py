"""``dandelion preflight``: tries settings before a run, and suggests better ones."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from dandelion.api.preflights import try_scopes, try_settings
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
    from pathlib import Path

    from server.preflight.judge import Preflight, Rates
    from server.preflight.scope_table import ScopeTable

ScopesOption = Annotated[
    float,
    typer.Option(
        "--scopes",
        min=0.0,
        metavar="SECONDS",
        help="Compare the model's scopes instead, each trained for so long.",
    ),
]
EXIT_STATUS = {"fine": 0, "doubtful": 1, "refused": 2}


@common_settings()
def preflight(
    common: dict[str, Value],
    settings: SettingsOption = None,
    config: ConfigOption = None,
    name: RunNameOption = "",
    scopes: ScopesOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Measure the effect of eps and learning rate on the model that a run would start from.

    Status 0: the settings are fine; 1: others are suggested; 2: the settings cannot work. With
    --scopes: 0 if a scope to train is named, 1 if none brings more than chance.
    """
    from dandelion.settings.gather import gather

    check_common(settings or [], common)
    chosen = gather(config, settings or [], None, **{**common, "run-name": name})
    progress = Console(stderr=True) if as_json else console
    if scopes:
        table, path = try_scopes(chosen, scopes, progress)
        show_scopes(table, path, as_json)
        raise typer.Exit(0 if table.best else 1)
    outcome, path = try_settings(chosen, progress)
    if as_json:
        show_json(json.loads(outcome.to_json()))
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


def show_scopes(table: "ScopeTable", path: "Path", as_json: bool) -> None:
    """Print what each scope would bring, and the one to train."""
    if as_json:
        show_json(json.loads(table.to_json()))
        return
    show_table(_scope_table(table))
    for name, reason in table.refused.items():
        say(f"{name}: {reason.splitlines()[0]}")
    best = table.best
    if best is None:
        say("no scope brings more than chance in this time; give --seconds more, or more examples")
    else:
        words = " ".join(f"--set {key}={value}" for key, value in best.settings.items())
        say(
            f"train {best.scope}: {words}; expected: loss {-best.gain:+.3g} ± {best.gain_error:.1g}"
            f" and more, in about {table.minutes(best):.2g} minutes of one site for "
            f"{table.rounds} rounds"
        )
    say(f"{path}")


def _scope_table(table: "ScopeTable") -> Table:
    titles = ("scope", "parameters", "signal", "curvature", "fall per pass", "seconds per pass",
              "rounds", "passes", "loss", "gain", "accuracy", "minutes of a run")  # fmt: skip
    shown = Table(*titles, title="each trained on one half of the held-out examples")
    for row in table.rows:
        scores = row.accuracy and f"{row.accuracy[0]:.1%} → {row.accuracy[1]:.1%}"
        shown.add_row(
            row.scope, f"{row.parameters:,}", f"{row.signal:.2g}", f"{row.curvature:.2g}",
            f"{row.fall_per_pass:.2g}", f"{row.seconds_per_pass:.2g}", f"{row.rounds}",
            f"{row.passes}", f"{row.loss[0]:.3f} → {row.loss[1]:.3f}",
            f"{row.gain:.3g} ± {row.gain_error:.1g}", scores or "", f"{table.minutes(row):.2g}",
            style="bold" if row is table.best else None,
        )  # fmt: skip
    return shown


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
