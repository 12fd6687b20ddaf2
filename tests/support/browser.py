"""A browser without a window: what a page says when it is opened, and what its console says."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
           "--host-resolver-rules=MAP * ~NOTFOUND")  # fmt: skip
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: apt-get install chromium"
)


@dataclass(frozen=True)
class Opened:
    """A page that was opened: what was asked for on the standard output, and complaints."""

    output: str
    complaints: list[str]


def open_page(address: str, profile: Path, *options: str) -> Opened:
    """Open a page from disk, with no network.

    Args:
        address: of the page, ``file://`` and what follows.
        profile: a folder for the browser's own files.
        options: more words for the browser, such as ``--dump-dom``.
    """
    words = [str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}", *options, address]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=True)
    return Opened(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])
