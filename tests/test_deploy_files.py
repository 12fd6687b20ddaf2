"""The files of ``deploy/`` name commands, files and options that there are."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from client.node import Node
from dandelion.cli import app

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
WORDS = re.compile(r"dandelion (server|client) (\w+)((?:.*\\\n)*.*)")


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
    found = WORDS.findall(path.read_text())
    assert found
    for group, command, rest in found:
        known = options(group, command)
        assert "Usage" in known, (group, command)
        for option in re.findall(r"(--[a-z-]+)", rest.split("`")[0]):
            assert option in known, (group, command, option)


@pytest.mark.parametrize("names", [["compose.yml"], ["compose.yml", "compose.tls.yml"]])
def test_compose_files_use_what_they_define(names):
    found = compose(*names)
    for name, service in found["services"].items():
        for volume in service["volumes"]:
            assert volume.split(":")[0] in found["volumes"], name
        for other in service.get("depends_on", []):
            assert other in found["services"], name
        assert set(service.get("secrets", [])) <= set(found.get("secrets", {})), name
        group, command = service["command"][:2]
        known = options(group, command)
        assert all(w in known for w in service["command"] if w.startswith("--")), name
        given = [w for w in service["command"] if "=" in w]
        if group == "client":
            Node.of({k: int(v) for k, v in (pair.split("=") for pair in given)})


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
    Node.of({k: int(v) if v.isdigit() else v for k, v in pairs.items()} | {"site": "a"})


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_reads_the_units(unit):
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    assert "Unknown" not in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck here")
def test_shell_scripts_are_clean():
    subprocess.run(["shellcheck", *DEPLOY.glob("*.sh")], check=True)


def test_docker_reads_the_compose_files():
    command = ["docker", "compose", "-f", DEPLOY / "compose.yml", "-f", DEPLOY / "compose.tls.yml"]
    if (
        shutil.which("docker") is None
        or subprocess.run(
            ["docker", "compose", "version"], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no docker compose here")
    subprocess.run([*command, "config", "--quiet"], check=True)
