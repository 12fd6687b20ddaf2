"""``dandelion client secret``, ``key`` and ``budget``: a site's own files of privacy."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from client.privacy.budget import BudgetLedger, DataSet
from client.privacy.node_policy import NodePolicy
from client.privacy.site_secret import SECRET_FILE, load_secret, make_secret
from dandelion.deployment.deploy_home import default_home
from dandelion.deployment.site_guard import PRIVACY_FOLDER
from dandelion.monitor.tables import json_text, print_table
from shared.base.errors import BudgetError
from shared.base.files import state_folder

HomeOption = Annotated[Path | None, typer.Option("--home", help="Folder of all files.")]
budget_app = typer.Typer(help="What a site's data have paid, over all runs.")
console = Console()


def secret(
    folder: HomeOption = None,
    new: Annotated[
        bool, typer.Option("--new", help="Replace the one that is there, which others may know.")
    ] = False,
) -> None:
    """Make the secret that draws a site's batches and noise, or check the one that is there."""
    own = folder_of(folder)
    if new:
        make_secret(own, replace=True)
    load_secret(own)
    console.print(f"{own / SECRET_FILE}", soft_wrap=True, highlight=False, markup=False)


def key(
    site: Annotated[str, typer.Argument(help="The node's key site: its name.")],
    folder: HomeOption = None,
) -> None:
    """Print the line that other sites put into their rosters, for sealed sums."""
    from client.sealed.identity import site_key
    from shared.protocol.site_id import site_of
    from shared.sealed.boxes import public_bytes

    public = public_bytes(site_key(load_secret(folder_of(folder)), site_of({"site": site})))
    line = f"{json.dumps(site, ensure_ascii=False)} = {json.dumps(public.hex())}"
    console.print(line, soft_wrap=True, highlight=False, markup=False)


@budget_app.callback(invoke_without_command=True)
def budget(
    context: typer.Context,
    folder: HomeOption = None,
    limit: Annotated[
        float, typer.Option("--max-epsilon", help="The node's limit, to be shown; 0: none.")
    ] = 0.0,
    delta: Annotated[float, typer.Option(help="The node's delta.")] = 1e-5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
) -> None:
    """Show each data set of a site, its runs, and the epsilon that all of them cost together."""
    if context.invoked_subcommand is not None:
        return
    policy = NodePolicy(max_epsilon=limit, delta=delta)
    with closing(open_existing(folder)) as ledger:
        rows = [_budget_row(ledger, data, policy) for data in ledger.sets()]
    if as_json:
        console.print(json_text(rows), soft_wrap=True, highlight=False, markup=False)
        return
    print_table(console, _budget_table(rows, policy))


def _budget_row(ledger: BudgetLedger, data: DataSet, policy: NodePolicy) -> dict[str, object]:
    """What a data set has paid, under the names that ``--json`` has."""
    from client.privacy.account import spent_epsilon

    rounds = {
        run: sum(each.times for each in ledger.spent(data.id, run)) for run in ledger.runs(data.id)
    }
    return {
        "set": data.id,
        "fingerprint": data.fingerprint,
        "name": data.name,
        "unit": data.unit,
        "units": data.units,
        "parent": data.parent or None,
        "runs": [{"run": run, "rounds": times} for run, times in rounds.items()],
        "numbers": ledger.numbers(data.id),
        "epsilon": spent_epsilon(ledger, data, policy),
        "max-epsilon": policy.max_epsilon or None,
        "delta": policy.delta,
    }


def _budget_table(rows: Sequence[Mapping[str, Any]], policy: NodePolicy) -> Table:
    """The same for a person."""
    from client.privacy.account import epsilon_text

    table = Table("data", "name", "unit", "run", "rounds", "numbers", "all runs together")
    for row in rows:
        inherited = [f"inherits {row['parent']}"] if row["parent"] else []
        table.add_row(
            f"{row['set']}: {row['fingerprint'][:12]}",
            row["name"] or "dealt by the runs",
            f"{row['units']} {row['unit']}s",
            "\n".join([each["run"][:8] for each in row["runs"]] + inherited),
            "\n".join(str(each["rounds"]) for each in row["runs"]),
            str(row["numbers"]),
            epsilon_text(row["epsilon"], policy),
        )
    return table


@budget_app.command()
def adopt(
    data: Annotated[str, typer.Argument(help="The node's key data: a folder's path, or a name.")],
    folder: HomeOption = None,
    text_column: Annotated[str, typer.Option(help="As the run's setting.")] = "",
    label_column: Annotated[str, typer.Option(help="As the run's setting.")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="As the run's: task, prompt-column; repeatable."
        ),
    ] = None,
) -> None:
    """Let data that have changed or grown inherit all that they have paid before."""
    from client.privacy.fingerprints import fingerprint_own
    from dandelion.settings.gather import read_pairs
    from shared.config.schema import Config
    from shared.data.resolve import documents_of
    from shared.training.corpus import columns_of

    columns = {"text-column": text_column, "label-column": label_column}
    own = Config({**columns, **read_pairs(settings or []), "dataset": data})
    documents = documents_of(data, columns=columns_of(own))
    fingerprint = fingerprint_own(own)
    with closing(open_existing(folder)) as ledger:
        units = [each.unit for each in ledger.sets() if each.name == data]
        new = DataSet(0, fingerprint, data, units[-1] if units else "", len(documents.texts))
        adopted = ledger.adopt(new)
    console.print(
        f"{data}: {adopted.fingerprint[:12]} inherits what set {adopted.parent} has paid",
        soft_wrap=True, highlight=False, markup=False,
    )  # fmt: skip


def folder_of(home: Path | None) -> Path:
    """The privacy folder of a node's home; without one, that of sites which this user simulates."""
    if home is not None:
        return home.resolve() / PRIVACY_FOLDER
    node = default_home("node").resolve() / PRIVACY_FOLDER
    return node if node.exists() else state_folder() / PRIVACY_FOLDER


def open_existing(home: Path | None) -> BudgetLedger:
    """Open the budget of a home.

    Raises:
        BudgetError: there is none, or it is damaged or was rolled back.
    """
    folder = folder_of(home)
    if not folder.is_dir():
        raise BudgetError(f"{folder}: no budget here; give the node's --home")
    return BudgetLedger(folder)
