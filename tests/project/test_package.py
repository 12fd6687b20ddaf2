"""The package is what people install: ranges and exact versions agree, and the wheel works."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
]
NEEDED = [
    Requirement(text)
    for text in (*PROJECT["dependencies"], *(each for texts in EXTRAS.values() for each in texts))
]
SCRIPT = """
import json, dandelion
run = dandelion.run(name="wheel", num_rounds=2, num_clients=2, queries=2, max_samples=20,
                    eval_blocks=4, progress=False, **{settings})
print(json.dumps([dandelion.__file__, dandelion.__version__, run.summary["digest"],
                  run.verify().digest]))
"""


def test_what_make_installs_is_exact_and_within_the_ranges():
    versions = {pin.name: str(pin.specifier) for pin in PINS}
    assert len(versions) == len(PINS)
    assert all(text.startswith("==") and "*" not in text for text in versions.values())
    for each in NEEDED:
        if each.name != "dandelion":
            assert each.specifier.contains(versions[each.name].removeprefix("=="))
    assert versions.keys() == {each.name for each in NEEDED} - {"dandelion"}


def test_what_people_install_has_a_lowest_version_and_leaves_room_above():
    for text in PROJECT["dependencies"]:
        operators = {each.operator for each in Requirement(text).specifier}
        assert ">=" in operators, text
        assert operators <= {">=", "<"}, text


def test_make_and_the_image_install_with_the_exact_versions():
    for file in ("Makefile", "deploy/Dockerfile"):
        installs = [
            line for line in (ROOT / file).read_text().splitlines() if "pip install" in line
        ]
        assert len(installs) == 2
        assert all("-c constraints.txt" in line for line in installs)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT]
    subprocess.run(command, check=True, timeout=300)
    (file,) = folder.glob("dandelion-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The programs of an environment with the wheel in it, and this one's other packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install"]
    subprocess.run([*pip, "--quiet", "--no-deps", "--no-index", wheel], check=True, timeout=300)
    (site / "host.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    for each in entry_points(group="console_scripts"):
        if each.dist.name == "flwr":  # its programs, as an installation of it would write them
            write_program(folder / "bin" / each.name, folder / "bin" / "python", each)
    return folder / "bin"


def write_program(path, python, entry):
    """Write what pip writes for an entry point."""
    path.write_text(f"#!{python}\nfrom {entry.module} import {entry.attr} as main\nmain()\n")
    path.chmod(0o755)


def run_outside(folder, *command):
    """Run a command in a folder with no checkout in sight; return its output."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = f"{Path(command[0]).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True,
        check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_has_the_packages_and_nothing_of_the_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"server", "client", "shared", "dandelion"}
    assert {"dandelion/py.typed", "dandelion/engines/flower_app.toml"} <= set(names)


@pytest.mark.slow
def test_the_installed_wheel_trains_verifies_and_says_its_version(installed, tmp_path):
    version = PROJECT["version"]
    assert run_outside(tmp_path, installed / "dandelion", "--version") == f"dandelion {version}\n"
    script = SCRIPT.replace("{settings}", "{}")
    output = run_outside(tmp_path, installed / "python", "-c", script)
    file, of_package, trained, verified = json.loads(output.splitlines()[-1])
    assert Path(file).is_relative_to(installed.parent)
    assert of_package == version
    assert trained == verified
    output = run_outside(tmp_path, installed / "dandelion", "ledger", "verify", "runs/wheel")
    assert trained in output


@pytest.mark.slow
def test_the_installed_wheel_trains_in_flowers_simulation(installed, tmp_path):
    script = SCRIPT.replace("{settings}", "{'engine': 'flower'}")
    output = run_outside(tmp_path, installed / "python", "-c", script)
    _, _, trained, verified = json.loads(output.splitlines()[-1])
    assert trained == verified


@pytest.mark.slow
def test_the_shell_completes_the_commands(installed, tmp_path):
    command = ("env", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1", installed / "dandelion")
    assert "_DANDELION_COMPLETE" in run_outside(tmp_path, *command, "--show-completion", "bash")
