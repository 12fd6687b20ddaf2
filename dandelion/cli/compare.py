"""``dandelion compare``: the bytes, forward passes and time that each method needs for its loss."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from dandelion.cli.console import FolderNameOption, JsonOption, say, show_json, show_table
from dandelion.settings.command_options import check_common, common_settings
from shared.base.options import Value


@common_settings("mode")
def compare(  # noqa: PLR0913, PLR0917  (options of a command)
    common: dict[str, Value],
    methods: Annotated[str, typer.Option(help="Names, separated by commas.")] = "",
    suite: Annotated[
        str, typer.Option(help="Several methods by one name: merged or three-modes.")
    ] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="[METHOD:]KEY=VALUE", help="A setting of all methods, or of one."
        ),
    ] = None,
    target_loss: Annotated[float | None, typer.Option(help="Count costs up to this loss.")] = None,
    seconds: Annotated[float, typer.Option(help="Stop each method after so many seconds.")] = 0.0,
    forwards: Annotated[
        float, typer.Option(help="Stop each after so many passes per client.")
    ] = 0.0,
    rates: Annotated[
        int, typer.Option(min=1, help="Try each method at so many learning rates; the best counts.")
    ] = 3,
    name: FolderNameOption = "",
    as_json: JsonOption = False,
) -> None:
    """Train several methods from the same start, and compare their costs."""
    from dandelion.comparisons.methods import read_pair, rows_of
    from dandelion.comparisons.runner import Budget
    from dandelion.comparisons.session import ComparisonPlan, run_comparison

    names = [each.strip() for each in methods.split(",") if each.strip()]
    budget = Budget(seconds, forwards)
    plan = ComparisonPlan(names, suite, target_loss, budget, rates, name)
    rows = rows_of(names, suite)
    check_common(settings or [], common)
    given = [read_pair(text, rows) for text in settings or []]
    given += [("", key, value) for key, value in common.items()]
    comparison, files = run_comparison(plan, given, say)
    if as_json:
        return show_json(comparison)
    show(comparison)
    for file in files:
        say(str(file))


def show(comparison: dict[str, object]) -> None:
    """Print the table and the verdicts of a comparison."""
    from dandelion.comparisons.presentation import about_text, table_rows

    say(about_text(comparison))
    titles, rows = table_rows(comparison)
    table = Table(
        *map(escape, titles), title=f"to a held-out loss of {comparison['target_loss']:.4f}"
    )
    for row in rows:
        table.add_row(*map(escape, row))
    show_table(table)
    verdicts = comparison["verdicts"]
    for verdict in verdicts if isinstance(verdicts, list) else []:
        say(str(verdict))
