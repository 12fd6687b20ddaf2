"""A problem of one's own on every engine: the digest is that of the local engine."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from machines import Federation, rows
from own_problem import SETTINGS, write_problem
from processes import of_flower_home, until
from three_nodes import partition

from dandelion.engines.flower_simulation import flower_environment, free_port

ROOT = Path(__file__).resolve().parents[3]
OTHER = "\n\nLATER = 1  # another version\n"


def digest(run):
    return json.loads((run / "summary.json").read_text())["digest"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the module, where the commands are given."""
    folder = tmp_path_factory.mktemp("own")
    write_problem(folder, "own_engines")
    return folder


def dandelion(folder, *words, more=()):
    """One of our commands, given in a folder."""
    pairs = [word for k, v in SETTINGS.items() for word in ("--set", f"{k}={v}")] if more else []
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-m", "dandelion", *words, *pairs, *more],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def local(folder):
    dandelion(folder, "run", "--name", "local", more=["--app", "own_engines:problem"])
    return folder / "runs" / "local"


@pytest.mark.slow
def test_a_ledger_is_verified_replayed_and_resumed_from_any_folder(folder, local, tmp_path):
    assert "digests equal" in dandelion(tmp_path, "ledger", "verify", str(local))
    out = tmp_path / "model"
    dandelion(tmp_path, "ledger", "replay", str(local), "--round", "2", "--out", str(out))
    assert (out / "model.safetensors").exists()
    whole = ["--app", "own_engines:problem", "--set", "save-model=false"]
    short = [*whole, "--name", "short", "--set", "num-rounds=2"]
    dandelion(folder, "run", more=short)
    dandelion(tmp_path, "run", "--resume", str(folder / "runs" / "short"), "--rounds", "3")
    assert digest(folder / "runs" / "short") == digest(local)
    start = [*whole, "--name", "warm", "--set", f"init-from={local}"]
    dandelion(folder, "run", more=start)
    assert digest(folder / "runs" / "warm") != digest(local)


@pytest.mark.slow
def test_comparison_sweep_and_preflight_take_it(folder):
    app = ["--app", "own_engines:problem"]
    dandelion(folder, "compare", "--methods", "zo,fo", "--rates", "1", "--name", "c", more=app)
    rows = json.loads((folder / "runs" / "c" / "comparison.json").read_text())["methods"]
    assert [row["peak_memory_bytes"] > 0 for row in rows] == [True, True]
    dandelion(folder, "sweep", "--grid", "eps=0.001,0.01", "--name", "s", more=app)
    assert len((folder / "runs" / "s" / "sweep.csv").read_text().splitlines()) == 3
    dandelion(folder, "preflight", more=[*app, "--set", "learning-rate=0.01"])
    (file,) = (folder / "runs").glob("*/preflight.json")
    assert json.loads(file.read_text())["loss"] > 0


@pytest.mark.slow
def test_clients_merged_into_one_batch_train_it(folder, local):
    merged = ["--app", "own_engines:problem", "--name", "merged", "--set", "merge-clients=true"]
    dandelion(folder, "run", more=merged)
    summaries = [json.loads((run / "summary.json").read_text())["evaluation_loss_last"]
                 for run in (folder / "runs" / "merged", local)]  # fmt: skip
    assert summaries[0] == pytest.approx(summaries[1], rel=1e-4)


@pytest.mark.slow
def test_flowers_simulation_has_the_digest_of_the_local_engine(folder, local):
    words = ["--app", "own_engines:problem", "--engine", "flower", "--name", "simulation"]
    dandelion(folder, "run", more=words)
    assert digest(folder / "runs" / "simulation") == digest(local)


@pytest.mark.slow
def test_flwr_run_in_an_app_folder_of_ones_own_has_the_digest_too(local, tmp_path):
    app = tmp_path / "app"
    write_problem(app, "own_engines")
    example = (ROOT / "examples" / "own_model" / "pyproject.toml").read_text()
    config = {**SETTINGS, "app": "own_engines:problem", "output-dir": str(tmp_path),
              "run-name": "run"}  # fmt: skip
    table = "".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items())
    text = example.partition("[tool.flwr.app.config]\n")[0].replace(
        '"digits.py", "mnist.py"', '"*.py"'
    )
    (app / "pyproject.toml").write_text(f"{text}[tool.flwr.app.config]\n{table}")
    environment = flower_environment(tmp_path / "home") | {
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "PYTHONPATH": str(ROOT),
    }
    command = [Path(sys.executable).parent / "flwr", "run", ".", "--stream"]
    command += ["--federation-config", "num-supernodes=3 client-resources-num-cpus=1"]
    try:
        done = subprocess.run(
            command, cwd=app, env=environment, capture_output=True, text=True, timeout=300,
            check=False,
        )  # fmt: skip
        assert (tmp_path / "run" / "summary.json").exists(), done.stdout + done.stderr
        assert digest(tmp_path / "run") == digest(local)
        assert "digests equal" in dandelion(app, "ledger", "verify", str(tmp_path / "run"))
    finally:
        for pid in of_flower_home(tmp_path / "home" / "flwr"):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_the_bundle_has_what_a_problem_imports_though_a_site_has_an_older_package(tmp_path):
    bundle, site = tmp_path / "bundle", tmp_path / "site"
    app = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    for file in {file for pattern in app["fab-include"] for file in ROOT.glob(pattern)}:
        (copy := bundle / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    (site / "dandelion").mkdir(parents=True)
    (site / "dandelion" / "__init__.py").write_text("")
    name = write_problem(site, "own_bundle")
    script = f"""
from shared.problem.load import load_problem
import dandelion, shared
assert type(load_problem({name!r}).problem) is dandelion.Problem
for public in "Site", "ZerothOrder", "zeroth_order_handler", "rebuild_from_ledger", "Config":
    getattr(dandelion, public)
for operators in "run", "compare", "load_run":
    try:
        getattr(dandelion, operators)
    except dandelion.DandelionError as error:
        assert str(error).startswith(f"dandelion.{{operators}} is for the operator and not in this")
    else:
        raise AssertionError(operators)
print(dandelion.__file__, shared.__file__)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", script], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [bundle, site]))},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = [str(bundle / package / "__init__.py") for package in ("dandelion", "shared")]
    assert done.stdout.split() == files


@pytest.mark.deployment
def test_separate_machines_have_the_digest_and_refuse_another_version(folder, local, tmp_path):
    """Three sites have the server's version of the module, each in a folder of its own."""
    federation = Federation(tmp_path)
    settings = {**SETTINGS, "min-sites": 3, "min-replies": 3, "app": "own_engines:problem",
                "app-dir": str(folder), "round-timeout": 300}  # fmt: skip
    try:
        federation.up()
        for number in range(3):
            write_problem(own := tmp_path / f"site-{number}", "own_engines")
            federation.join(f"n{number}", *partition(number), "--app-dir", str(own))
        assert federation.run("same", settings).wait(400) == 0, federation.output_of("same")
        assert digest(federation.runs / "same") == digest(local)
        leave(federation, "n2")
        write_problem(other := tmp_path / "other", "own_engines", OTHER)
        federation.join("n2", *partition(2), "--app-dir", str(other))
        until(lambda: federation.output_of("n2").count("is connected to") == 2, "n2 is back")
        fewer = {**settings, "min-sites": 2, "min-replies": 2, "num-rounds": 2}
        assert federation.run("other", fewer).wait(400) == 0, federation.output_of("other")
    finally:
        federation.end()
    run = federation.runs / "other"
    assert {site for (site,) in rows(run, "SELECT DISTINCT site FROM contributions")} == {"0", "1"}
    ((site, reason, detail),) = rows(run, "SELECT site, reason, detail FROM refusals")
    assert (site, reason) == ("2", "introduction")
    assert detail.startswith("other source files, or of app 'own_engines:problem': ")
    assert "other source files, or of app" in dandelion(tmp_path, "status", str(run))


def leave(federation, name):
    """A node is ended by its operator: the server knows at once that it is gone."""
    node = federation.nodes.pop(name)
    node.terminate()
    node.wait(60)
