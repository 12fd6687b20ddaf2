"""What a program has started ends with the process that has started the program."""

import os
import subprocess
import sys
from contextlib import ExitStack

import pytest
from processes import of, until

from dandelion.engines.process_tree import end_session, end_tree, start_tree

TREE = "setsid sleep 601 & sleep 602"  # one leaves the session, as Flower's SuperExec does
HOLDER = """
import sys
from pathlib import Path
from dandelion.engines.process_tree import start_tree
folder = Path(sys.argv[1])
with (folder / "log").open("wb") as log:
    process = start_tree(["sh", "-c", sys.argv[2]], folder, {"MARK": f"{folder}/"}, log)
process.wait()
"""
STUBBORN = """
import sys
from dandelion.engines import process_tree
process_tree.GRACE_S = 0.0
sys.exit(process_tree.run(["sh", "-c", "trap '' TERM; touch there; while :; do sleep 603; done"]))
"""


@pytest.fixture
def start(tmp_path):
    """Start a shell's command in a tree of its own."""
    with (tmp_path / "log").open("wb") as log, ExitStack() as ends:

        def begin(command):
            mark = {"MARK": f"{tmp_path}/"}
            process = start_tree(["sh", "-c", command], tmp_path, mark, log)
            ends.callback(end_tree, process)
            return process

        yield begin


def test_the_status_is_that_of_the_program(start, tmp_path):
    assert start("echo $0 here; exit 3").wait() == 3
    assert "here" in (tmp_path / "log").read_text()


def test_what_is_left_when_the_program_ends_is_ended(start, tmp_path):
    assert start("setsid sleep 600 & exit 0").wait() == 0
    assert not of(tmp_path)


def sleeping(folder):
    """How many processes of the tree sleep."""
    return len(of(folder, "sleep\0"))


@pytest.mark.parametrize("end", [end_tree, end_session])
def test_it_is_ended_with_all_that_it_has_started(end, start, tmp_path):
    process = start(TREE)
    until(lambda: sleeping(tmp_path) == 2, "both sleep", each_s=0.01)
    end(process)
    assert not of(tmp_path)


def test_all_end_when_the_process_that_has_started_them_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path, TREE])
    until(lambda: sleeping(tmp_path) == 2, "both sleep", each_s=0.01)
    holder.kill()
    holder.wait()
    until(lambda: not of(tmp_path), "nothing is left", each_s=0.01)


def test_one_that_does_not_listen_is_killed(tmp_path):
    mark = os.environ | {"MARK": f"{tmp_path}/"}
    command = [sys.executable, "-c", STUBBORN]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=tmp_path, env=mark)
    until((tmp_path / "there").exists, "it ignores SIGTERM", each_s=0.01)
    process.stdin.close()
    assert process.wait() == 1
    assert not of(tmp_path)
