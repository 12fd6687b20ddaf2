"""The command does what it says, and a user's mistake ends in one clear line and status 2."""

import json
import re
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from dandelion.cli.app import app, entry
from shared.config.schema import settings as declared_settings

ROOT = Path(__file__).parents[3]
TINY = ("max-samples=20", "block-size=32", "eval-blocks=4", "num-clients=2", "num-rounds=2",
        "queries=2", "snapshot-interval=1", "step=plain")  # fmt: skip


@pytest.fixture
def dandelion(monkeypatch, capsys):
    """Call the command in this process: exit status, standard output, standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["dandelion", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            entry()
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return call


@pytest.fixture
def refused(dandelion):
    """Call the command, which must fail: its one line on standard error."""

    def call(*arguments):
        status, out, err = dandelion(*arguments)
        assert status == 2
        assert err.count("\n") == 1
        assert "Traceback" not in out + err
        return err.strip()

    return call


def settings(folder, *more):
    pairs = [*TINY, f"output-dir={folder}", *more]
    return [part for pair in pairs for part in ("--set", pair)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two rounds, made by the command itself in a process of its own."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "dandelion", "run", *settings(folder), "--name", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (folder / "tiny" / "said.txt").write_text(done.stdout)
    return folder / "tiny"


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_a_run_leaves_its_files_and_a_model(run):
    files = {path.name for path in run.iterdir()}
    assert files >= {"ledger.sqlite", "config.toml", "metrics.csv", "clients.csv", "summary.json",
                     "loss.png", "model", "snapshots"}  # fmt: skip
    assert summary_of(run)["rounds"] == 2


def test_without_a_terminal_progress_is_plain_lines(run):
    said = (run / "said.txt").read_text()
    assert "\x1b" not in said
    assert re.search(r"^round 0/2  held out \d\.\d{3}  up 0 B  down 0 B$", said, re.M)
    assert re.search(r"^round 2/2  loss \d\.\d{3}  held out .*  up .* B  down .* B$", said, re.M)


def test_a_run_ends_in_a_table_with_units_and_few_digits(run):
    said = (run / "said.txt").read_text()
    assert "124,864 parameters" in said
    assert summary_of(run)["digest"] in said
    assert "52 B up, 92 B down per client and round" in said
    assert not re.search(r"\d\.\d{4}", said)
    assert str(run / "loss.png") in said
    assert max(map(len, said.partition("picture")[0].splitlines())) <= 80


def test_help_shows_every_command(dandelion):
    status, out, _ = dandelion("--help")
    assert status == 0
    assert all(f" {name} " in out for name in ("run", "plot", "ledger", "bench"))
    status, out, _ = dandelion("ledger", "--help")
    assert all(f" {name} " in out for name in ("show", "verify", "replay"))


def test_help_does_without_torch():
    code = "import sys, dandelion.cli.app; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_the_version_is_that_of_the_package(dandelion):
    import dandelion as package

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert package.__version__ == project["version"]
    assert dandelion("--version") == (0, f"dandelion {project['version']}\n", "")


def test_the_package_imports_nothing_heavy():
    ours = "{'torch', 'flwr', 'typer', 'numpy', 'server', 'client', 'shared'}"
    code = f"import sys, dandelion; assert not {ours} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr.decode()


COMMON = {
    "mode": ("--mode", "zo"), "model": ("--model", "byte-gpt"), "dataset": ("--data", "topics"),
    "num-rounds": ("--rounds", 1), "num-clients": ("--clients", 3), "queries": ("--queries", 1),
    "learning-rate": ("--lr", 0.01), "eps": ("--eps", 0.005), "scope": ("--scope", "bias"),
}  # fmt: skip


def test_help_of_run_shows_the_common_settings_and_where_all_are(dandelion):
    status, out, _ = dandelion("run", "--help")
    panel = out.partition("Common settings")[2]
    assert status == 0
    assert all(f" {option}" in panel for option, _ in COMMON.values())
    assert "--learning-rate" in panel
    assert "All settings: dandelion settings" in out


@pytest.mark.parametrize(
    "words", [["run"], ["compare"], ["sweep"], ["preflight"], ["server", "run"]]
)
def test_a_command_that_trains_has_the_common_settings_as_they_are_declared(words):
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    options = {each.name.replace("_", "-"): each for each in command.params}
    for key in COMMON.keys() - ({"mode"} if words == ["compare"] else set()):
        declared, option = declared_settings()[key], options[key]
        assert option.rich_help_panel == "Common settings"
        help_ = option.help.replace("\\[", "[")
        assert help_.lower().startswith(declared.meaning.lower())
        assert help_.endswith(f" [{key} = {declared.default}]")
        assert option.type.name == {str: "text", int: "integer", float: "float"}[declared.kind]


def test_every_command_is_in_a_panel_of_the_help():
    command = typer.main.get_command(app)
    panels = {each.rich_help_panel for each in command.commands.values()}
    assert panels == {"Train", "Inspect", "Federate", "Measure"}
    assert next(iter(command.commands)) == "run"


@pytest.mark.parametrize(
    ("words", "offered"),
    [("dandelion le", "ledger"), ("dandelion run --set quer", "queries=\nquery-data="),
     ("dandelion run --preset ro", "rotten-tomatoes"), ("dandelion run --engine fl", "flower")],
)  # fmt: skip
def test_a_shell_completes_commands_settings_presets_and_engines(words, offered, monkeypatch):
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    monkeypatch.setenv("_DANDELION_COMPLETE", "complete_bash")
    result = CliRunner().invoke(app, prog_name="dandelion", color=False)
    assert result.stdout.strip() == offered


def test_a_common_option_of_compare_and_sweep_is_refused_beside_the_same_setting(refused, tmp_path):
    text = "queries is given by --set and by its own option; give it once"
    folder = ("--set", f"output-dir={tmp_path}")
    for words in (
        ("compare", "--methods", "zo", "--set", "zo.queries=2"),
        ("sweep", "--grid", "queries=1,2"),
        ("sweep", "--grid", "eps=1,2", "--set", "queries=2"),
        ("preflight", "--set", "queries=2"),
    ):
        assert text in refused(*words, *folder, "--queries", "3"), words


def test_a_common_option_is_the_setting_of_its_name(dandelion, tmp_path):
    pairs = [pair for pair in TINY if pair.partition("=")[0] not in COMMON]
    words = [word for pair in (*pairs, f"output-dir={tmp_path}") for word in ("--set", pair)]
    words += [word for option in COMMON.values() for word in option]
    assert dandelion("run", *words, "--name", "common")[0] == 0
    recorded = flat(tomllib.loads((tmp_path / "common" / "config.toml").read_text()))
    assert {key: recorded[key] for key in COMMON} == {k: value for k, (_, value) in COMMON.items()}


def flat(table):
    """The keys and values of a TOML file, with or without sections."""
    pairs = [p for k, v in table.items() for p in (v.items() if isinstance(v, dict) else [(k, v)])]
    return dict(pairs)


@pytest.mark.parametrize("key", COMMON)
def test_a_setting_given_twice_is_refused(refused, tmp_path, key):
    option, value = COMMON[key]
    pair = f"{key.replace('-', '_')}={value}"  # underscores are the same key
    line = refused("run", "--set", f"output-dir={tmp_path}", "--set", pair, option, value)
    assert line == f"ConfigError: {key} is given by --set and by its own option; give it once"
    assert not list(tmp_path.iterdir())


def test_a_common_option_with_a_bad_value_is_refused_as_the_setting_is(refused):
    line = refused("run", "--queries", "0")
    assert line == "ConfigError: queries: an integer from 1 to below 2**30 expected, got 0"


def test_show_prints_the_rounds(dandelion, run):
    status, out, _ = dandelion("ledger", "show", run)
    assert status == 0
    assert "2 in 72 B of entries" in out
    assert summary_of(run)["digest"] in out
    assert re.search(r"^ +2 +0\.02 +1 × 2 +36 +\d\.\d{4} +[0-9a-f]{32}", out, re.M)
    assert not re.search(r"^ +1 ", dandelion("ledger", "show", run, "--last", 1)[1], re.M)


def test_verify_compares_every_digest(dandelion, run):
    status, out, _ = dandelion("ledger", "verify", run)
    assert status == 0
    assert out == f"2 rounds replayed, 3 digests equal; digest {summary_of(run)['digest']}\n"


@pytest.mark.parametrize("round_", [0, 1, 2])
def test_a_replayed_model_loads_in_transformers_and_has_the_digest(
    dandelion, run, tmp_path, round_
):
    from transformers import AutoModelForCausalLM

    from shared.base.flat import flatten
    from shared.replica.replica import digest_of

    status, out, _ = dandelion("ledger", "replay", run, "--round", round_, "--out", tmp_path / "m")
    assert status == 0
    model = flatten(AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32))
    assert f"round {round_}, digest {digest_of(model.flat).hex()}: {tmp_path / 'm'}\n" == out
    if round_ == 2:
        assert digest_of(model.flat).hex() == summary_of(run)["digest"]


def test_plot_draws_anew(dandelion, run):
    (run / "loss.png").unlink()
    assert dandelion("plot", run) == (0, f"{run / 'loss.png'}\n", "")
    assert (run / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_a_resumed_run_ends_where_a_whole_one_does(dandelion, run, tmp_path):
    assert dandelion("run", *settings(tmp_path, "num-rounds=1"), "--name", "half")[0] == 0
    status, out, err = dandelion("run", "--resume", tmp_path / "half", "--set", "num-rounds=2")
    assert (status, err) == (0, "")
    assert "round 1/2" in out
    assert summary_of(tmp_path / "half")["digest"] == summary_of(run)["digest"]


def test_resume_may_also_be_a_setting(dandelion, run, tmp_path):
    assert dandelion("run", *settings(tmp_path, "num-rounds=1"), "--name", "half")[0] == 0
    status, _, _ = dandelion("run", "--set", f"resume={tmp_path / 'half'}", "--set", "num-rounds=2")
    assert status == 0
    assert summary_of(tmp_path / "half")["digest"] == summary_of(run)["digest"]


def test_a_recorded_configuration_runs_again_under_another_name(dandelion, run, tmp_path):
    again = ["--set", f"output-dir={tmp_path}", "--name", "again"]
    assert dandelion("run", "--config", run / "config.toml", *again)[0] == 0
    assert summary_of(tmp_path / "again")["digest"] == summary_of(run)["digest"]


def test_a_single_value_wins_over_the_file(dandelion, run, tmp_path):
    again = ["--set", f"output-dir={tmp_path}", "--set", "num-rounds=1", "--name", "less"]
    assert dandelion("run", "--config", run / "config.toml", *again)[0] == 0
    assert summary_of(tmp_path / "less")["rounds"] == 1


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("querys=3", "ConfigError: unknown setting 'querys'; did you mean queries"),
        ("queries=many", "ConfigError: queries: int expected, got 'many'"),
        ("queries=0", "ConfigError: queries: an integer from 1 to below 2**30 expected, got 0"),
        ("queries", "ConfigError: --set key=value expected, got 'queries'"),
        ("mode=nonsense", "UnknownNameError: unknown mode 'nonsense'; known: "),
        ("dataset=nonsense", "UnknownNameError: unknown dataset 'nonsense'; known: "),
        ("optimizer=nonsense", "UnknownNameError: unknown optimizer 'nonsense'; known: adam, "),
        ("directions=[/red]", "UnknownNameError: unknown directions '[/red]'; known: gaussian, "),
        ("model=nonsense", "ConfigError: unknown model 'nonsense'; known: 1B, 200M, 20M, "),
        ("model=/none/such", "ConfigError: unknown model '/none/such'; known: 1B, "),
        ("scope=regex:(", "ConfigError: scope 'regex:(': "),
        ("block-size=4096", "ConfigError: block-size up to 128 expected for model 'byte-gpt', "),
        ("min-clients=3", "ConfigError: min-sites: at most num-clients = 2 expected here, got 3"),
        ("resume=/none/such", "ConfigError: /none/such: no run to resume; config.toml expected"),
    ],
)
def test_a_bad_setting_ends_before_any_ledger_is_made(refused, tmp_path, pair, expected):
    line = refused("run", *settings(tmp_path, pair), "--name", "bad")
    assert line.startswith(expected)
    assert not list(tmp_path.rglob("ledger.sqlite"))
    assert not list(tmp_path.rglob("config.toml"))


def test_an_unknown_engine_names_the_known_ones(refused, tmp_path):
    line = refused("run", *settings(tmp_path), "--engine", "nonsense")
    assert line == "UnknownNameError: unknown engine 'nonsense'; known: flower, local"
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_there_is_not_overwritten(refused, run):
    before = (run / "ledger.sqlite").read_bytes()
    line = refused("run", *settings(run.parent), "--name", "tiny")
    assert line == f"ConfigError: {run}: a run is there; resume it, or choose another run-name"
    assert (run / "ledger.sqlite").read_bytes() == before


@pytest.mark.parametrize("key", ["queries", "run-name", "output-dir"])
def test_a_resumed_run_refuses_what_would_make_it_another(refused, run, key):
    line = refused("run", "--resume", run, "--set", f"{key}=3")
    assert line.startswith(f"ConfigError: a resumed run keeps ['{key}']; it may be given [")


def test_merging_is_refused_where_sites_share_no_process(refused, tmp_path):
    line = refused("run", "--engine", "flower", "--set", "merge-clients=true")
    assert line.startswith("ConfigError: merge-clients with --engine flower: ")
    home = tmp_path / "home"
    line = refused("server", "run", "--home", home, "--set", "merge-clients=true")
    assert line.startswith("ConfigError: merge-clients with a deployment: ")


@pytest.mark.parametrize(
    "command", [["plot"], ["ledger", "show"], ["ledger", "verify"], ["run", "--resume"],
                ["ledger", "replay", "--round", "1", "--out", "out"]], ids=" ".join
)  # fmt: skip
def test_a_missing_run_folder_is_named(refused, tmp_path, command):
    line = refused(*command, tmp_path / "none")
    assert str(tmp_path / "none") in line
    assert not list(tmp_path.iterdir())


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run that may be damaged."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("ledger.sqlite", "config.toml"):
        (folder / name).write_bytes((run / name).read_bytes())
    return folder


COMMANDS = (["plot"], ["ledger", "show"], ["ledger", "verify"], ["run", "--resume"])
every_command = pytest.mark.parametrize("command", COMMANDS, ids=" ".join)


@every_command
def test_an_altered_entry_is_named_by_file_and_row(refused, copy, command):
    with sqlite3.connect(copy / "ledger.sqlite") as connection:
        connection.execute("UPDATE entries SET payload = zeroblob(36) WHERE round = 2")
    connection.close()
    line = refused(*command, copy)
    assert line.startswith(f"LedgerError: {copy / 'ledger.sqlite'}: table entries, row 2: ")


@every_command
def test_a_file_that_is_no_ledger_is_named(refused, copy, command):
    (copy / "ledger.sqlite").write_bytes(b"this is no database at all" * 400)
    line = refused(*command, copy)
    assert line.startswith(f"LedgerError: {copy / 'ledger.sqlite'}: ")


@pytest.mark.parametrize("round_", [-1, 3])
def test_a_round_that_is_not_there_is_refused(refused, run, tmp_path, round_):
    line = refused("ledger", "replay", run, "--round", round_, "--out", tmp_path / "m")
    assert line == f"ConfigError: round: 0 to 2 expected, got {round_}"
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("text", "expected"), [(b"queries = ", "Invalid value"), (b"\xff\xfe", "can't decode byte")]
)
def test_a_settings_file_that_is_not_toml_is_named(refused, tmp_path, text, expected):
    (tmp_path / "bad.toml").write_bytes(text)
    line = refused("run", "--config", tmp_path / "bad.toml")
    assert line.startswith(f"ConfigError: {tmp_path / 'bad.toml'}: ")
    assert expected in line


def test_a_settings_file_that_is_not_there_is_named(refused, tmp_path):
    line = refused("run", "--config", tmp_path / "none.toml")
    assert line == f"ConfigError: {tmp_path / 'none.toml'}: No such file or directory"


def test_a_folder_that_cannot_be_made_is_named(refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    line = refused("run", *settings(tmp_path / "file"), "--name", "x")
    assert str(tmp_path / "file" / "x") in line
