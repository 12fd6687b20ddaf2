"""The folders for a machine without an index: packed in pieces, and put together again."""

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def load(name):
    path = ROOT / "deploy" / "gpu" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gather, run = load("gather"), load("run")
LIMIT = 50_000


@pytest.fixture
def files(tmp_path):
    """Files of sizes that need pieces, fill folders, and fit beside others."""
    folder, draw = tmp_path / "files", random.Random(1)
    folder.mkdir()
    sizes = {"large-1-py3-none-any.whl": 110_000, "b.whl": 45_000, "c.whl": 20_000, "d.whl": 10}
    for name, size in sizes.items():
        (folder / name).write_bytes(draw.randbytes(size))
    return sorted(folder.iterdir())


def packed(files, out, carriers=("large-1-py3-none-any.whl",)):
    folders = gather.pack(files, out, LIMIT)
    manifest = {"folders": folders, "carriers": [*carriers], "requirements": []}
    (out / "1" / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def test_no_folder_is_larger_than_the_limit_and_no_byte_is_lost(files, tmp_path):
    manifest = packed(files, tmp_path / "out")
    assert manifest["folders"] == 5  # three pieces in one folder each, 45,000 and 20,000 bytes
    for folder in (tmp_path / "out").iterdir():
        assert sum(path.stat().st_size for path in folder.iterdir()) <= LIMIT
    wheels, packages = tmp_path / "wheels", tmp_path / "packages"
    assert list(run.assemble(tmp_path / "out", wheels, packages, manifest)) == []
    assert [path.name for path in packages.iterdir()] == ["large-1-py3-none-any.whl"]
    whole = {
        path.name: path.read_bytes() for place in (wheels, packages) for path in place.iterdir()
    }
    assert whole == {path.name: path.read_bytes() for path in files}


def test_a_folder_that_did_not_come_along_is_named(files, tmp_path):
    manifest = packed(files, tmp_path / "out")
    for path in (tmp_path / "out" / "3").iterdir():
        path.unlink()
    (tmp_path / "out" / "3").rmdir()
    wheels, packages = tmp_path / "wheels", tmp_path / "packages"
    (fault,) = run.assemble(tmp_path / "out", wheels, packages, manifest)
    assert fault == f"{tmp_path / 'out' / '3'} is missing"


def test_names_are_compared_as_indexes_do():
    assert gather.canonical("Huggingface_Hub") == gather.canonical("huggingface-hub")
    assert gather.split_names(" a, b,,") == {"a", "b"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--carriers", "none"], "expected, got ['none']"),
        (["--limit", "0"], "at least 1 MiB expected, got 0"),
    ],
)
def test_arguments_that_cannot_work_are_refused_before_any_download(
    words, message, tmp_path, capsys
):
    with pytest.raises(SystemExit):
        gather.main([str(tmp_path / "out"), *words])
    assert message in capsys.readouterr().err


def test_a_folder_that_is_full_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        gather.main([str(tmp_path)])
    assert "a new or empty folder expected" in capsys.readouterr().err


def test_a_folder_without_a_manifest_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main([str(tmp_path)])
    assert "none has manifest.json" in capsys.readouterr().err


@pytest.mark.slow
def test_the_environment_has_this_pythons_packages_and_passes_its_options_on(files, tmp_path):
    packed(files, tmp_path / "out", carriers=[path.name for path in files])
    words = ["--device", "cpu", "--tiny", "--steps", "directions", "--out", str(tmp_path / "r")]
    script = ROOT / "deploy" / "gpu" / "run.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "out"), "--work", str(tmp_path / "w"), *words],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    assert [step["status"] for step in results["steps"]] == ["done"]
    assert (tmp_path / "w" / "environment" / "pyvenv.cfg").exists()
