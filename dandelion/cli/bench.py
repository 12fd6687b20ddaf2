"""``dandelion bench`` and ``dandelion gpu-check``: measure speed and memory, mostly as ratios."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.table import Table

from dandelion.bench.rows import BenchRow
from dandelion.cli.console import JsonOption, say, show_json, show_table
from dandelion.gpu_check.__main__ import main as check_on_device
from dandelion.gpu_check.runner import MINUTES
from dandelion.gpu_check.steps import STEPS
from shared.base.errors import ConfigError

if TYPE_CHECKING:
    from dandelion.privacy.attacks.report import AttackRow

app = typer.Typer(help="Measure speed and memory as ratios.")
LEARNING_FOLDER, STEP_FOLDER = Path("runs/bench-learning"), Path("runs/bench-step-rule")
STEP_NAMES = ", ".join(step.name for step in STEPS)
STDOUT = Path("-")
# options of the benchmarks that train
Tasks = Annotated[list[str] | None, typer.Option(help="Task; repeatable. Default: all at hand.")]
Rates = Annotated[int, typer.Option(min=1, max=5, help="Rates that are tried.")]
Evaluations = Annotated[
    int, typer.Option(min=0, help="Budget of each run per site; 0: the task's.")
]
SettingsOfRuns = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Of all runs; repeatable.")
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", help="Also write the rows to this file; -: print them in place of the table."
    ),
]


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    device: Annotated[
        str, typer.Option(help="Without a command: show this device's bandwidth table.")
    ] = "",
    json_file: Json = None,
) -> None:
    """Measure speed and memory as ratios."""
    if context.invoked_subcommand is not None and (device or json_file):
        command = context.invoked_subcommand
        raise ConfigError(f"options go behind the command: dandelion bench {command} --json FILE")
    if context.invoked_subcommand is None and device:
        bandwidth(device, json_file)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
def bandwidth(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu", json_file: Json = None
) -> None:
    """Measure each kernel's memory bandwidth against a plain copy on the device."""
    from dandelion.bench.bandwidth import bandwidth as measure

    show("bandwidth", measure(device), json_file)


@app.command()
def growth(
    picture: Annotated[
        Path | None, typer.Option(help="Also draw a picture into this file.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Measure how round time and memory grow with parameters, queries and clients."""
    from dandelion.bench.growth import growth as measure

    show("growth", measure(picture), json_file)


@app.command()
def directions(json_file: Json = None) -> None:
    """Time adding random directions to 20 M parameters."""
    from dandelion.bench.directions import directions as measure

    show("directions", measure(), json_file)


@app.command()
def query(json_file: Json = None) -> None:
    """Time one query (two perturbed evaluations) against two plain forwards."""
    from dandelion.bench.query import query as measure

    show("query", measure(), json_file)


@app.command()
def memory(json_file: Json = None) -> None:
    """Measure peak memory of a query over a plain forward, in separate processes."""
    from dandelion.bench.memory import memory as measure

    show("memory", measure(), json_file)


@app.command()
def replay(json_file: Json = None) -> None:
    """Time the replay of a thousand rounds in one pass, against other ways."""
    from dandelion.bench.replay import replay as measure

    show("replay", measure(), json_file)


@app.command()
def parallel(json_file: Json = None) -> None:
    """Time many directions in one batched forward, against one by one."""
    from dandelion.bench.parallel import parallel as measure

    show("parallel", measure(), json_file)


@app.command()
def prefix_cache(json_file: Json = None) -> None:
    """Time queries of a partly trained encoder whose frozen parts are computed once."""
    from dandelion.bench.prefix_cache import prefix_cache as measure

    show("prefix cache", measure(), json_file)


@app.command()
def cut(json_file: Json = None) -> None:
    """Time evaluations that begin at kept activations, with the last 2 of 30 blocks trained."""
    from dandelion.bench.cut import cut as measure

    show("kept activations", measure(), json_file)


@app.command()
def clients(json_file: Json = None) -> None:
    """Time rounds of 1,000 clients with one example each, against 10 clients with 100."""
    from dandelion.bench.clients import clients as measure

    show("clients", measure(), json_file)


@app.command()
def engine(json_file: Json = None) -> None:
    """Time message handling alone: rounds of virtual clients that measure nothing."""
    from dandelion.bench.engine import engine as measure

    show("engine", measure(), json_file)


@app.command()
def idle(json_file: Json = None) -> None:
    """Measure what the programs of a waiting site hold in memory: Flower's and ours."""
    from dandelion.deployment.idle_cost import idle_cost

    show("idle", idle_cost(), json_file)


@app.command()
def privacy(
    attacks: Annotated[
        bool, typer.Option("--attacks", help="What each attack reads, with privacy and without.")
    ] = False,
    guard: Annotated[
        bool, typer.Option("--guard", help="Time rounds through a guard against a worker.")
    ] = False,
    json_file: Json = None,
) -> None:
    """Time a site's part of a private round, and whole rounds with sealed sums, in turns."""
    if attacks:
        from dandelion.privacy.attacks.report import measure_attacks

        shown = (lambda line: None) if json_file == STDOUT else say
        return show_attacks(measure_attacks(shown), json_file)
    if guard:
        from dandelion.privacy.guard_time import cost_of_guard

        return show("privacy", cost_of_guard(), json_file)
    from dandelion.privacy.cost_in_time import cost_in_time
    from dandelion.privacy.cost_of_sums import cost_of_sums

    return show("privacy", [*cost_in_time(), *cost_of_sums()], json_file)


@app.command()
def learning(  # noqa: PLR0913, PLR0917  (options of a command)
    task: Tasks = None,
    method: Annotated[list[str] | None, typer.Option(help="Repeatable. Default: all.")] = None,
    quick: Annotated[bool, typer.Option(help="Small, for a test of the whole way.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method at its best rate.")] = 3,
    rates: Rates = 5,
    evaluations: Evaluations = 0,
    minutes: Annotated[
        float, typer.Option(min=0, help="At most so many per problem; 0: no limit.")
    ] = 0.0,
    settings: SettingsOfRuns = None,
    out: Annotated[Path, typer.Option(help="Folder of runs and files.")] = LEARNING_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Race published methods and ours to accuracy, each at the best of five rates."""
    from dandelion.bench.learning.learning import learning as measure
    from dandelion.bench.learning.methods import FACTORS, Settings
    from dandelion.bench.learning.race import Trial
    from dandelion.bench.learning.race_report import markdown
    from dandelion.settings.gather import read_pairs

    more = cast(Settings, read_pairs(settings or []))  # the type of each is checked with its run
    trial = Trial(out.resolve(), seeds, minutes, FACTORS[:rates], method or [], evaluations, more)
    races = measure(task or [], trial, quick, say)
    if as_json:
        return show_json({name: [asdict(each) for each in races[name]] for name in races})
    for name, curves in races.items():
        say(f"\n{name}\n{markdown(curves)}")


@app.command("step-rule")
def step_rule(  # noqa: PLR0913, PLR0917  (options of a command)
    task: Tasks = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=0, help="Batch size; 0: all. Default: two of each task.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of the rule and of the best rate.")] = 3,
    rates: Rates = 5,
    evaluations: Evaluations = 0,
    settings: SettingsOfRuns = None,
    out: Annotated[Path, typer.Option(help="Folder of runs and files.")] = STEP_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Hold step = auto to the best of five rates, on tasks of all sizes."""
    from dandelion.bench.learning.methods import FACTORS, Settings
    from dandelion.bench.learning.race import Trial
    from dandelion.bench.learning.step_rule import markdown_of
    from dandelion.bench.learning.step_rule import step_rule as measure
    from dandelion.settings.gather import read_pairs

    more = cast(Settings, read_pairs(settings or []))
    trial = Trial(out.resolve(), seeds, 0.0, FACTORS[:rates], (), evaluations, more)
    rows = measure(task or [], batch or [], trial, say)
    if as_json:
        return show_json([asdict(row) | {"shares": row.shares} for row in rows])
    say(f"\n{markdown_of(rows)}")


def gpu_check(  # noqa: PLR0913, PLR0917  (options of a command)
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("gpu-check"),
    minutes: Annotated[float, typer.Option(help="For all steps together.")] = MINUTES,
    device: Annotated[str, typer.Option(help="cuda, cuda:1, ... or cpu.")] = "cuda",
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Small sizes: only try the command.")
    ] = False,
    steps: Annotated[str, typer.Option(help=f"With commas, of {STEP_NAMES}; empty: all.")] = "",
    replay_file: Annotated[
        Path | None,
        typer.Option("--replay", help="Only replay a recordings.json of another machine here."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Try the system on a card: bits, speed, large models and learning."""
    words = ["--out", str(out), "--minutes", str(minutes), "--device", device, "--steps", steps]
    words += ["--tiny"] * tiny + ["--json"] * as_json
    words += ["--replay", str(replay_file)] if replay_file else []
    raise typer.Exit(check_on_device(words))


def show_attacks(rows: "Sequence[AttackRow]", json_file: Path | None) -> None:
    """Print what attacks read as a table, or as JSON; write it as JSON if a file is given."""
    if json_file == STDOUT:
        return show_json([asdict(row) for row in rows])
    table = Table("attack", "measure", "without privacy", "epsilon 2", "at most")
    for row in rows:
        table.add_row(row.attack, row.measure, row.plain, row.private, row.bound)
    show_table(table)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def show(title: str, rows: Sequence[BenchRow], json_file: Path | None) -> None:
    """Print rows as a table, or as JSON; write them as JSON if a file is given."""
    if json_file == STDOUT:
        return show_json([asdict(row) for row in rows])
    table = Table("what", "seconds", "ratio", "note", title=title)
    for row in rows:
        table.add_row(row.name, f"{row.seconds:.4g}", f"{row.ratio:.3g}", row.note)
    show_table(table)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
