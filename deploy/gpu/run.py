"""Puts together what ``gather.py`` gathered, and runs ``gpu-check`` with it; reaches no network.

    python deploy/gpu/run.py FOLDER [--work WORK] [options of gpu-check]

FOLDER has the folders 1, 2, … of ``gather.py``. Run it with the Python that has PyTorch. Wheels
that this Python lacks go into an environment of their own in WORK, which sees all its packages;
models and data go into a cache in WORK. Nothing else on the machine is changed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = "manifest.json"
PIECE = re.compile(r"(.+)\.part(\d+)")
INSTALLED = ("site-packages", "dist-packages")


def main(arguments: Sequence[str]) -> int:
    """Assemble, then hand all other arguments to the check; return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, default=Path("gpu-work"))
    given, others = parser.parse_known_args(arguments)
    manifests = sorted(given.folder.glob(f"*/{MANIFEST}"))
    if not manifests:
        parser.error(f"{given.folder}: the folders of gather.py expected; none has {MANIFEST}")
    manifest = json.loads(manifests[0].read_text())
    work = given.work.resolve()
    wheels, cache = work / "wheels", work / "cache"
    for fault in assemble(given.folder, wheels, cache / "packages", manifest):
        print(f"{fault}; steps that need it will say so", file=sys.stderr)
    python = make_environment(work / "environment")
    if not install(python, wheels, manifest["requirements"]):
        print("pip failed, see above; the check goes on with what is there", file=sys.stderr)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "DANDELION_CACHE": str(cache)}
    command = [str(python), "-m", "dandelion.gpu_check", *others]
    return subprocess.run(command, check=False, env={**os.environ, **own}).returncode


def assemble(
    folder: Path, wheels: Path, packages: Path, manifest: Mapping[str, Any]
) -> Iterator[str]:
    """Put pieces together and every file where it is looked for; yield what is missing.

    Wheels go to ``wheels``; carriers of models and data to ``packages``, where the first step that
    needs one compares its hash with the pinned one.
    """
    for number in range(1, manifest["folders"] + 1):
        if not (folder / str(number)).is_dir():
            yield f"{folder / str(number)} is missing"
    pieces: dict[str, dict[int, Path]] = {}
    for file in folder.glob("*/*"):
        match = PIECE.fullmatch(file.name)
        name, number = (match[1], int(match[2])) if match else (file.name, 1)
        pieces.setdefault(name, {})[number] = file
    pieces.pop(MANIFEST)
    for name, parts in pieces.items():
        place = packages if name in manifest["carriers"] else wheels
        place.mkdir(parents=True, exist_ok=True)
        with (place / name).open("wb") as whole:
            for number in sorted(parts):
                whole.write(parts[number].read_bytes())


def make_environment(folder: Path) -> Path:
    """Make an environment that sees this Python's packages; return its interpreter.

    ``venv`` with system packages would show those of the Python that this one was made from.
    """
    if not (folder / "pyvenv.cfg").exists():
        venv.create(folder, with_pip=False)
    (own,) = folder.glob("lib/python*/site-packages")
    seen = [path for path in sys.path if Path(path).name in INSTALLED]
    (own / "host.pth").write_text("".join(f"{path}\n" for path in seen))
    return folder / "bin" / "python"


def install(python: Path, wheels: Path, requirements: Sequence[str]) -> bool:
    """Let this Python's pip install what the environment lacks, from the wheels alone."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    options = ["--no-index", "--find-links", str(wheels), "--disable-pip-version-check"]
    done = subprocess.run([*command, *options, *requirements], check=False)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
