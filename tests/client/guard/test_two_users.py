"""A node of two users, as deploy/systemd has it: the guard's own, and that of the code of runs.

Both are real processes under made-up user ids, which only root can make. The installation may lie
where they cannot read, so each process imports all that it needs before it changes its user.
"""

import grp
import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from small_config import small_config

from client.privacy.budget import BUDGET_FILE, BudgetLedger
from client.privacy.site_secret import SECRET_FILE
from shared.problem.source import source_digest
from shared.protocol.messages import Request, decode_reply, encode_request

ROOT = Path(__file__).resolve().parents[3]
GUARD_USER, APP_USER, STRANGER = 65001, 65002, 65003
PRIVATE = {"privacy": "local", "privacy-noise": 1.0, "privacy-clip": 40.0}
GUARD = """
import json, os, sys
from pathlib import Path
from client.guard.process import Guard, run_guard
from client.site.replica_host import forget_hosts
from client.worker.paths import paths_at
from client.worker.protocol import encode_frame
from dandelion.deployment.deploy_home import Home
from dandelion.deployment.site_guard import node_config
a = json.loads(sys.argv[1])
config = lambda home: node_config(["site=a", "data=" + a["data"]], Home.at(Path(home)))
rehearsal = Guard(config(a["rehearsal"]), 60.0)
for request in a["requests"]:
    rehearsal.answer(encode_frame({"run": a["run"]}, [bytes.fromhex(request)]))
forget_hosts()
os.setgroups([a["group"]])
os.setgid(a["user"])
os.setuid(a["user"])
paths = paths_at(Path(a["socket"]), Path(a["home"]) / "store")
run_guard(config(a["home"]), paths, 600.0, a["name"])
"""
APP = """
import json, os, sys
from pathlib import Path
from client.guard import relay
a = json.loads(sys.argv[1])
relay.START_S = a["patience"]
os.setgroups(a["groups"])
os.setgid(a["user"])
os.setuid(a["user"])
def is_open(name):
    try:
        return bool(list(Path(name).iterdir()) if Path(name).is_dir() else open(name, "rb").read(1))
    except OSError as error:
        return False
said = {"open": [name for name in a["names"] if is_open(name)]}
try:
    guard = relay.GuardRelay(a["run"], a["socket"])
    said["replies"] = [guard.train(bytes.fromhex(each), None)[0].hex() for each in a["requests"]]
except Exception as error:
    said["error"] = type(error).__name__
print(json.dumps(said))
"""


def requests():
    """Two encoded requests of a first round, of two runs, as text."""
    code = source_digest("")
    runs = (bytes(range(16)), bytes(16))
    return [encode_request(Request(1, 0.01, bytes(16), run, code)).hex() for run in runs]


def start(program, words, **more):
    """A process of this installation."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", program, json.dumps(words)]
    return subprocess.Popen(command, env=environment, cwd="/", **more)


@pytest.fixture
def node():
    """Folders of a node: ``own`` and ``home`` are the guard's alone, ``socket`` its group's."""
    group = grp.getgrall()[-1]
    with TemporaryDirectory(prefix="dandelion-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        for part, mode in (("own", 0o700), ("home", 0o700), ("socket", 0o750)):
            (folder / part).mkdir(mode=mode)
        for number in range(12):
            (folder / "own" / f"{number}.txt").write_text("smith was seen and went home. " * 3)
        for path in (folder / "own", *(folder / "own").iterdir(), folder / "home"):
            os.chown(path, GUARD_USER, GUARD_USER)
        os.chown(folder / "socket", GUARD_USER, group.gr_gid)
        run = small_config(folder, round_timeout=120.0).to_run_config() | PRIVATE
        words = {"run": run, "requests": requests(), "socket": str(folder / "socket" / "guard")}
        yield folder, group, words


def start_guard(folder, group, words):
    """The guard under its own user, once its socket is there."""
    more = {"data": str(folder / "own"), "home": str(folder / "home"), "user": GUARD_USER}
    more |= {"rehearsal": str(folder / "rehearsal"), "group": group.gr_gid, "name": group.gr_name}
    process = start(GUARD, words | more, stderr=subprocess.PIPE)
    while not stat.S_IMODE(mode_of(words["socket"])) & stat.S_IWGRP:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.05)
    return process


def mode_of(path):
    return os.stat(path).st_mode if os.path.exists(path) else 0


def ask_as(user, groups, words, names):
    """What a process of a user says that it could read, and what it was answered."""
    more = {"user": user, "groups": groups, "names": [str(name) for name in names]}
    more["patience"] = 60.0 if groups else 1.0  # for the socket
    process = start(APP, words | more, stdout=subprocess.PIPE)
    return json.loads(process.communicate()[0])


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="other users need root")
def test_code_of_a_run_reaches_the_socket_and_nothing_else_and_a_stranger_not_even_that(node):
    folder, group, words = node
    guard = start_guard(*node)
    try:
        files = [folder / "own", folder / "own" / "1.txt", folder / "home"]
        files += [folder / "home" / "privacy" / name for name in (SECRET_FILE, BUDGET_FILE)]
        files += [f"/proc/{guard.pid}/{name}" for name in ("mem", "environ", "cwd")]
        app = ask_as(APP_USER, [group.gr_gid], words, files)
        assert app["open"] == []
        replies = [decode_reply(bytes.fromhex(each)) for each in app["replies"]]
        assert [len(each.differences) for each in replies] == [2, 2]
        stranger = ask_as(STRANGER, [], words, [*files, folder / "socket"])
        assert stranger == {"open": [], "error": "WorkerError"}
        socket = os.stat(words["socket"])
        assert (socket.st_uid, socket.st_gid) == (GUARD_USER, group.gr_gid)
        assert stat.S_IMODE(socket.st_mode) == 0o660
        own = [folder / "home", *(folder / "home" / "privacy").rglob("*")]
        assert {SECRET_FILE, BUDGET_FILE} < {path.name for path in own}
        assert not [path for path in own if path.stat().st_mode & 0o077]
    finally:
        guard.send_signal(signal.SIGKILL)
        guard.communicate()
    with closing(BudgetLedger(folder / "home" / "privacy")) as budget:
        assert [each.times for each in budget.spent(1)] == [len(replies)]
