"""The page on plug-ins: its package is built and installed, and its commands work."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import tomllib
import zipfile

import pytest
from page_runs import blocks_of, shrink
from pages import ROOT, text_of

PAGE = "docs/how-to/plug-ins.md"
MODULE, PROJECT, COMMANDS = (block.text for block in blocks_of(PAGE))


def build_wheel(folder, text, version):
    """Build the page's package without a network; return its wheel."""
    project = tomllib.loads(PROJECT)["project"]
    name = project["name"].replace("-", "_")
    points = "".join(
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in rows.items())
        for group, rows in project["entry-points"].items()
    )
    info = f"{name}-{version}.dist-info"
    files = {
        "midrange.py": text,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": points,
    }
    hashes = {
        path: base64.urlsafe_b64encode(hashlib.sha256(data.encode()).digest()).rstrip(b"=").decode()
        for path, data in files.items()
    }
    rows = [f"{path},sha256={hashes[path]},{len(data)}\n" for path, data in files.items()]
    files[f"{info}/RECORD"] = "".join(rows) + f"{info}/RECORD,,\n"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return wheel


@pytest.fixture
def environment_with(tmp_path):
    """A function from the plug-in's text and version to an environment that has it installed."""

    def install(text=MODULE, version="1.0", by_pip=False):
        site = tmp_path / f"site-{version}"
        site.mkdir()
        wheel = build_wheel(tmp_path, text, version)
        if by_pip:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
            subprocess.run([*pip, "--target", site, wheel], check=True, timeout=300)
        else:
            zipfile.ZipFile(wheel).extractall(site)
        path = os.pathsep.join([str(ROOT), str(site)])
        return {**os.environ, "PYTHONPATH": path, "DANDELION_CACHE": str(tmp_path / "cache")}

    return install


def run(words, environment, folder):
    command = [sys.executable, "-W", "ignore", *map(str, words)]
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_page_is_followed(environment_with, tmp_path):
    environment = environment_with(by_pip=True)
    install, *lines = COMMANDS.splitlines()
    assert install == "pip install ."
    for line in lines:
        done = run(["-m", "dandelion", *shrink(line)], environment, tmp_path)
        assert done.returncode == 0, done.stderr
    assert 'aggregation = "midrange"' in (tmp_path / "runs/middle/config.toml").read_text()


@pytest.mark.slow
def test_a_site_with_another_version_of_it_would_be_refused(environment_with, tmp_path):
    code = "from shared.base.files import code_digest as f; print(f().hex())"
    texts = {"1.0": MODULE, "1.1": MODULE + "# changed\n"}
    digests = {
        run(["-c", code], environment_with(text, version), tmp_path).stdout
        for version, text in texts.items()
    }
    digests.add(run(["-c", code], {**os.environ, "PYTHONPATH": str(ROOT)}, tmp_path).stdout)
    assert len(digests) == 3


@pytest.mark.slow
def test_a_name_that_is_taken_ends_a_command_with_one_line(environment_with, tmp_path):
    environment = environment_with(MODULE.replace('"midrange"', '"median"'))
    words = shrink("dandelion run --name taken --set aggregation=median")
    done = run(["-m", "dandelion", *words], environment, tmp_path)
    assert done.returncode == 2
    assert "the plug-in midrange = midrange of dandelion-midrange 1.0" in done.stderr
    assert "aggregation 'median' is registered twice" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_page_names_the_group_of_each_registry():
    code = (
        "import json, sys; from pkgutil import resolve_name; "
        "print(json.dumps({row: resolve_name(row).group for row in sys.argv[1:]}))"
    )
    cells = [line.split("`") for line in text_of(PAGE).splitlines() if line.startswith("| `dand")]
    groups = {row[3]: row[1] for row in cells}
    done = run(["-c", code, *groups], {**os.environ, "PYTHONPATH": str(ROOT)}, ROOT)
    assert json.loads(done.stdout) == groups
    assert len(groups) == 9
