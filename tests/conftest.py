"""One compute thread per test process: with two, and anything else on the machine, tests crawl.

CUDA kernels run by Triton's interpreter; it looks at its variable when triton is first imported.
No example of Hypothesis has a time limit: on a busy machine it would fail for nothing.
Temporary folders are in memory if there is room: a run syncs its files some thirty times.
The garbage collector leaves alone what is imported: to look through it takes half a second.
Pictures are rendered for the tests that look at some; a run of three rounds takes less time.
"""

import gc
import os
import re
import sys
import tempfile
from pathlib import Path
from shutil import disk_usage

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a thread without work takes no core
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

RENDERING = {  # folders whose tests look at pictures
    f"tests/{name}"
    for name in ("server/reporting", "server/pages", "dandelion/cli", "dandelion/comparisons",
                 "dandelion/sweeps", "project")
}  # fmt: skip
BLANK = bytes.fromhex(  # a picture of one pixel
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000 3a7e9b55"
    "0000000a49444154789c63600000000200 0148afa471 0000000049454e44ae426082"
)
MEMORY, ROOM = Path("/dev/shm"), 4 << 30  # bytes; the folders of a session take some 600 MB


def takes_folders(memory: Path) -> bool:
    """Whether temporary folders can be there: it has room, and programs may be run from it.

    What it may take at most says nothing of what the machine has left, so that is asked as well.
    """
    if not memory.is_dir() or disk_usage(memory).free < ROOM:
        return False
    left = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    if left is None or int(left[1]) << 10 < ROOM:
        return False
    return not os.statvfs(memory).f_flag & os.ST_NOEXEC


if "TMPDIR" not in os.environ and takes_folders(MEMORY):
    tempfile.tempdir = str(MEMORY)  # of this process, so of pytest's own folders too


def pytest_sessionstart(session):
    """Set up a process that runs tests; the one that hands them out imports neither library."""
    is_worker = hasattr(session.config, "workerinput")
    if not is_worker and session.config.getoption("dist", "no") != "no":
        return
    import torch
    from hypothesis import settings

    settings.register_profile("dandelion", deadline=None)
    settings.load_profile("dandelion")
    torch.set_num_threads(1)


def pytest_collection_finish():
    """What is there before the first test stays there: a million objects of libraries."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def rendered():
    """Asked for by a test that looks at a picture and lies in no folder of RENDERING."""


@pytest.fixture(autouse=True)
def _composed(request):
    """Figures are made, and written as one pixel: to render one takes 0.13 s, a round 0.02."""
    folder = request.path.parent.relative_to(request.config.rootpath).as_posix()
    module = sys.modules.get("matplotlib.figure")
    looks = folder in RENDERING or "rendered" in request.fixturenames
    if module is None or looks or request.node.get_closest_marker("slow"):
        yield
        return
    before = module.Figure.savefig
    module.Figure.savefig = lambda figure, path, **options: Path(path).write_bytes(BLANK)
    yield
    module.Figure.savefig = before


@pytest.fixture
def one_thread():
    """One compute thread, unless the test sets another number; put back afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
