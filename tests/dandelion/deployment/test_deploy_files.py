"""The files of ``deploy/`` name commands, files and options that there are."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from client.site.node_config import NodeConfig
from dandelion.cli.app import app

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
WORDS = re.compile(r"dandelion (server|client) (\w+)((?:.*\\\n)*.*)")


def docker_compose() -> list[str]:
    """The command that reads compose files, where there is one."""
    for command in (["docker", "compose"], ["docker-compose"]):
        version = [*command, "version"]
        if shutil.which(command[0]) is not None:
            done = subprocess.run(version, check=False, capture_output=True)
            if done.returncode == 0:
                return command
    return []


BIN = Path(sys.executable).parent
DOCKER = docker_compose()


def options(group: str, command: str) -> str:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [group, command, "--help"]).output


def compose(*names: str) -> dict:
    merged: dict = {}
    for name in names:
        for section, entries in yaml.safe_load((DEPLOY / name).read_text()).items():
            if isinstance(entries, dict):
                for key, value in entries.items():
                    old = merged.setdefault(section, {}).get(key)
                    merged[section][key] = {**old, **value} if isinstance(old, dict) else value
    return merged


@pytest.mark.parametrize("path", [*UNITS, DEPLOY / "README.md"], ids=lambda path: path.name)
def test_commands_and_their_options_are_known(path):
    commands = WORDS.findall(path.read_text())
    assert commands
    for group, command, rest in commands:
        known = options(group, command)
        assert "Usage" in known, (group, command)
        for option in re.findall(r"(--[a-z-]+)", rest.split("`")[0]):
            assert option in known, (group, command, option)


@pytest.mark.parametrize("names", [["compose.yml"], ["compose.yml", "compose.tls.yml"]])
def test_compose_files_use_what_they_define(names):
    stack = compose(*names)
    for name, service in stack["services"].items():
        for volume in service["volumes"]:
            assert volume.split(":")[0] in stack["volumes"], name
        for other in service.get("depends_on", []):
            assert other in stack["services"], name
        assert set(service.get("secrets", [])) <= set(stack.get("secrets", {})), name
        group, command = service["command"][:2]
        known = options(group, command)
        assert all(w in known for w in service["command"] if w.startswith("--")), name
        given = [w for w in service["command"] if "=" in w]
        if group == "client":
            NodeConfig.of({k: int(v) for k, v in (pair.split("=") for pair in given)})


def test_with_the_override_nothing_is_insecure():
    services = compose("compose.yml", "compose.tls.yml")["services"]
    assert not [n for n, s in services.items() if "--insecure" in s["command"]]


def test_units_come_back_for_longer_than_flower_refuses_them():
    for unit in UNITS:
        text = unit.read_text()
        assert "Restart=always" in text
        assert "StartLimitIntervalSec=0" in text


def test_node_environment_has_keys_of_the_node_config():
    text = (DEPLOY / "node.env.example").read_text()
    pairs = dict(re.findall(r"--set ([a-z-]+)=(\S+)", text))
    node = NodeConfig.of(
        {k: int(v) if v.isdigit() else v for k, v in pairs.items()} | {"site": "a"}
    )
    assert node == NodeConfig(site="a", data="/srv/dandelion/data", device="cpu")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_reads_the_units(unit):
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    assert "Unknown" not in done.stderr


def test_shell_scripts_are_clean():
    subprocess.run([BIN / "shellcheck", *DEPLOY.glob("*.sh")], check=True)


COMPOSE = [["compose.yml"], ["compose.yml", "compose.tls.yml"]]


@pytest.mark.parametrize("names", COMPOSE, ids=" ".join)
def test_compose_files_are_what_the_specification_says(names, tmp_path):
    """By its own schema, each file and what they are together."""
    merged = tmp_path / "merged.yml"
    merged.write_text(yaml.safe_dump(compose(*names)))
    files = [*(DEPLOY / name for name in names), merged]
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_schema_finds_a_misspelt_key(tmp_path):
    (tmp_path / "bad.yml").write_text("services: {server: {image: a, comand: [b]}}")
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "bad.yml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "comand" in done.stdout


@pytest.mark.skipif(not DOCKER, reason="no docker compose here; the schema was checked")
@pytest.mark.parametrize("names", COMPOSE, ids=" ".join)
def test_docker_reads_the_compose_files(names):
    files = [word for name in names for word in ("-f", DEPLOY / name)]
    done = subprocess.run([*DOCKER, *files, "config", "--quiet"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
