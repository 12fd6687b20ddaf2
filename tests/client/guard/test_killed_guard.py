"""``kill -9`` at instants that are spread over a whole round: whatever left the site is paid for.

A forked process does what a guard does for one request, and kills itself at a chosen call or return
of a function. So the instants are the same on a fast machine and on a slow one, and some lie in
between any two writes of the budget.
"""

import os
import random
import signal
import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import pytest
from small_config import small_config

from client.guard.process import Guard
from client.privacy import account
from client.privacy.budget import BUDGET_FILE, BudgetLedger
from client.site.replica_host import forget_hosts
from client.worker.protocol import encode_frame
from dandelion.deployment.deploy_home import Home
from dandelion.deployment.site_guard import node_config
from shared.problem.source import source_digest
from shared.protocol.messages import Request, encode_request

PRIVATE = {"privacy": "local", "privacy-noise": 1.0, "privacy-clip": 40.0}
BEFORE, WITHIN, AFTER = 5, 12, 5  # instants of a round: before the payment, in it, and after it


@dataclass
class Instants:
    """Counts the calls and returns of a process; may end it at one of them."""

    fatal: int = 0  # 0: none
    count: int = 0
    first: int = 0  # of the payment
    last: int = 0

    def __call__(self, frame, event, argument):
        self.count += 1
        if frame.f_code is BudgetLedger.spend.__code__:
            self.first, self.last = self.first or self.count, self.count
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def live(work, instants):
    """Let another process send what ``work()`` returns; return what came, and whether it lived."""
    source, sink = os.pipe()
    child = os.fork()
    if not child:  # never returns to pytest
        try:
            sys.setprofile(instants)
            os.write(sink, work())
            sys.setprofile(None)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(sink)
    with open(source, "rb") as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, -signal.SIGKILL}
    return said, status == 0


def answer(folder, number, privacy=PRIVATE):
    """A new guard's answer to the request of run ``number``."""
    guard = Guard(node_config(["site=a"], Home.at(folder / "home")), 60.0)
    run = small_config(folder).to_run_config() | privacy
    code = source_digest("")
    request = encode_request(Request(1, 0.01, bytes(16), number.to_bytes(16, "little"), code))
    return guard.answer(encode_frame({"run": run}, [request]))


def payments(folder):
    """How many answers the budget has; read without the code that mends it when it is opened."""
    with closing(sqlite3.connect(folder / "home" / "privacy" / BUDGET_FILE)) as file:
        return file.execute("SELECT count(*) FROM events").fetchone()[0]


def count_instants(folder):
    """The instants of a round: how many, and which are the payment's."""
    instants = Instants()

    def work():
        answer(folder, 0)
        return f"{instants.first} {instants.last} {instants.count}".encode()

    return map(int, live(work, instants)[0].split())


@pytest.fixture
def warm(tmp_path, monkeypatch):
    """Data and models are in memory before the first fork; no budget is open in this process."""
    monkeypatch.setattr(account, "epsilon_text", lambda *_: "")  # a second each; nothing is written
    answer(tmp_path, 0, {})
    forget_hosts()


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_guard_that_is_killed_at_any_instant_has_paid_for_what_left(tmp_path):
    live(partial(answer, tmp_path, 1), Instants())  # makes secret and budget
    first, last, count = count_instants(tmp_path)
    assert payments(tmp_path) == 2
    chance, outcomes = random.Random(16), set()
    spread = [
        *chance.sample(range(1, first), BEFORE), *chance.sample(range(first, last), WITHIN),
        *chance.sample(range(last, count), AFTER),
    ]  # fmt: skip
    for number, instant in enumerate(spread, 2):
        request = partial(answer, tmp_path, number)
        seen, _ = live(request, Instants(instant))
        paid = payments(tmp_path) - number
        assert bool(seen) <= paid <= 1
        outcomes.add((bool(seen), paid))
        whole, lived = live(request, Instants())  # the next guard goes on: paid for once
        assert lived
        assert seen in {b"", whole}
        assert payments(tmp_path) == number + 1
    assert {(False, 0), (False, 1)} <= outcomes
