"""A server that keeps to nothing: forged settings and requests straight at the guard's calls.

Each row of the threat model that a guard answers is tried, with a guard as ``client join`` makes it
and bytes that no code of ours has checked. A refusal names its key, and no number leaves.
"""

import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_config import small_config

from client.guard.process import Guard
from client.privacy.budget import BudgetLedger
from client.site.replica_host import _hosts
from client.worker.protocol import decode_answer, encode_frame
from dandelion.deployment.deploy_home import Home
from dandelion.deployment.operator_keys import public_half, sign_run
from dandelion.deployment.site_guard import node_config
from shared.base.errors import ConfigError, PolicyError
from shared.config.schema import Config
from shared.problem.source import source_digest
from shared.protocol.entry import Entry, SlotDifferences
from shared.protocol.messages import Behind, Measured, Request, decode_reply, encode_request
from shared.protocol.run_request import RunRequest, sign
from shared.replica.snapshot import encode_snapshot
from shared.training.oracle import Oracle

ROOT = Path(__file__).resolve().parents[3]
RUN, OTHER_RUN, KEY = bytes(range(16)), bytes(16), bytes(range(32))
PRIVATE = {"privacy": "local", "privacy-noise": 1.0, "privacy-clip": 40.0}


@pytest.fixture(autouse=True)
def _no_host_of_another_test():
    _hosts.clear()
    yield
    _hosts.clear()


class Site:
    """A guard with a policy, and a server that asks it for whatever it likes."""

    def __init__(self, folder, *policy):
        self.folder, self.home = folder, Home.at(folder / "home")
        self.guard = Guard(node_config(["site=a", *policy], self.home), 60.0)

    def ask(self, settings=None, snapshot=None, **fields):
        """One request, forged where the server likes."""
        run = small_config(self.folder).to_run_config() | dict(settings or {})
        whole = {"learning_rate": 0.01, "digest": bytes(16), "run": RUN, "round": 1}
        payload = encode_request(Request(**{**whole, "code": source_digest(""), **fields}))
        parts = [payload] if snapshot is None else [payload, snapshot]
        answer = self.guard.answer(encode_frame({"run": run}, parts))
        return decode_reply(decode_answer(answer)[0])

    def refuses(self, key, *given, **fields):
        with pytest.raises(PolicyError, match=f"^refused by policy: {key}$"):
            self.ask(*given, **fields)


def entry(number=1, size=2.0):
    """An entry that a server made up: its numbers are of no site."""
    return Entry(number, 0.1, [SlotDifferences(0, np.full(2, size, np.float32))]).encode()


def test_what_an_honest_server_asks_is_answered(tmp_path):
    reply = Site(tmp_path).ask()
    assert isinstance(reply, Measured)
    assert len(reply.differences) == 2


def test_parameters_that_no_numbers_gave(tmp_path):
    """The trap of one image in a batch of 512 needs a model of the server's own making."""
    site = Site(tmp_path, "allow-snapshots=false")
    replica = Oracle.of(small_config(tmp_path)).replica
    replica.model.flat.fill_(0.5)
    trap = encode_snapshot(replica, RUN)
    site.refuses("allow-snapshots", None, trap, reset=True, digest=replica.digest())
    gradient = Entry(1, 1.0, (), guide=1.0, payload=b"x" * 40).encode()
    site.refuses("allow-snapshots", round=2, entries=(gradient,))
    assert isinstance(site.ask(round=2, entries=(entry(),)), Measured)


def test_a_digest_that_the_parameters_do_not_have(tmp_path):
    """A server may say what it likes of them; it gets no number at others."""
    reply = Site(tmp_path).ask(digest=bytes([7] * 16))
    assert isinstance(reply, Behind)


@pytest.mark.parametrize(
    ("policy", "settings", "key"),
    [
        ([], {"mode": "instruct", "guidance": "reuse"}, "allow-modes"),
        ([], {"mode": "fo"}, "allow-modes"),
        ([], {"mode": "fedavg"}, "allow-modes"),
        ([], {"scope": "regex:.*bias"}, "allow-scopes"),
        (["allow-scopes=head"], {"scope": "full"}, "allow-scopes"),
        ([], {"eps": 100.0}, "eps-range"),
        ([], {"eps": 1e-9}, "eps-range"),
        (["min-batch=2"], {"zo-batch-size": 1}, "min-batch"),
        (["max-queries=8"], {"queries": 512}, "max-queries"),
        (["max-queries=8"], {"queries": 4, "local-steps": 4}, "max-queries"),
        (["allow-evaluation=false"], {"site-eval-fraction": 0.5}, "allow-evaluation"),
        (["privacy=local"], {}, "privacy"),
        (["max-clip=8"], PRIVATE, "max-clip"),
        (["min-noise=1.5"], PRIVATE, "min-noise"),
        (["max-rate=0.001"], PRIVATE, "max-rate"),
        (["allow-models=00"], {}, "allow-models"),
        ([], {"objective": "os:system"}, "allow-apps"),
        ([], {"app": "json:loads"}, "allow-apps"),
    ],
)  # fmt: skip
def test_settings_that_read_more_than_the_site_allows(policy, settings, key, tmp_path):
    site = Site(tmp_path, *policy)
    site.refuses(key, settings)
    assert site.home.folder.joinpath("privacy", "budget.sqlite").exists() is (
        key in {"min-noise", "max-rate"}
    )


@pytest.mark.parametrize("key", ["dataset", "bp-dataset", "init-from", "model"])
def test_folders_of_the_sites_disk(key, tmp_path):
    """As a path, as a link, relative to home, and as one that looks like a name on the hub."""
    secret = tmp_path / "others"
    secret.mkdir()
    (secret / "a.txt").write_text("the diary of somebody else " * 20)
    (tmp_path / "link").symlink_to(secret)
    site = Site(tmp_path)
    for name in (secret, tmp_path / "link", "~/others", f"x/../..{secret}"):
        site.refuses("allow-paths", {key: str(name)})


def test_a_folder_to_import_from_is_the_sites_alone(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    Site(tmp_path).refuses("allow-apps", {"app": "evil:problem", "app-dir": str(tmp_path)})
    with pytest.raises(ConfigError, match="app: a module that can be imported here"):  # noqa: PT012
        plain = Config().to_run_config()
        Site(tmp_path, "allow-apps=evil:*").ask(
            {**plain, "app": "evil:p", "app-dir": str(tmp_path)}
        )


def test_an_outcome_that_no_setting_of_the_run_has(tmp_path):
    """The flag of a request is the server's, and asks a site without held-out examples."""
    reply = Site(tmp_path, "allow-evaluation=false").ask(evaluate=True, compare=True)
    assert (reply.outcome, reply.before, reply.after) == (None, None, None)


def test_a_private_run_sends_noisy_numbers_and_nothing_else(tmp_path):
    pytest.importorskip("dp_accounting")
    site = Site(tmp_path, "privacy=local", "max-epsilon=50")
    reply = site.ask(PRIVATE, evaluate=True, compare=True)
    assert (reply.loss, reply.outcome, reply.before, reply.after) == (None,) * 4
    assert (reply.seconds, reply.examples) == (0.0, 2)


def test_bisection_by_repeated_requests_is_paid_for(tmp_path):
    """The same question is the same answer; a question at other parameters, or of another run with
    the same seed, is another four numbers, over all runs and after a restart."""
    own = tmp_path / "own"
    own.mkdir()
    for number in range(12):
        (own / f"{number}.txt").write_text(f"patient {number} was seen and went home. " * 3)
    site = Site(tmp_path, "max-numbers=8", f"data={own}")
    first = site.ask()
    assert site.ask().differences.tobytes() == first.differences.tobytes()
    for size in (1.0, 2.0):
        site.ask(round=2, entries=(entry(size=size),), reset=True)
    site.ask(run=OTHER_RUN)
    _hosts.clear()
    again = Site(tmp_path, "max-numbers=8", f"data={own}")
    again.refuses("max-numbers", {"seed": 2}, reset=True)
    again.refuses("max-numbers", run=bytes([9] * 16), reset=True)
    assert again.ask(reset=True).differences.tobytes() == first.differences.tobytes()


def test_privacy_is_paid_for_by_each_question(tmp_path):
    """Chosen eps, chosen run: each is an event, until the budget ends it."""
    pytest.importorskip("dp_accounting")
    site = Site(tmp_path, "privacy=local", "max-epsilon=0.05")
    with pytest.raises(PolicyError, match="max-epsilon"):  # noqa: PT012
        for number in range(60):
            assert site.ask(PRIVATE, run=bytes([number] * 16)).loss is None
    assert 1 <= number < 59
    site.refuses("max-epsilon", {**PRIVATE, "eps": 0.002})


def test_a_run_that_no_operator_has_signed(tmp_path):
    site = Site(tmp_path, f"operators={public_half(KEY)}")
    config = small_config(tmp_path)
    site.refuses("operators")
    own = config.replace(run_request=sign_run(config, KEY, RUN, 1.0)).to_run_config()
    assert isinstance(site.ask(own), Measured)
    site.refuses("operators", own, run=OTHER_RUN)
    site.refuses("operators", own | {"queries": 64})
    claim = RunRequest.decode(own["run-request"]).claim
    stale = sign(replace(claim, expires=claim.signed - 3600), KEY)
    site.refuses("operators", own | {"run-request": stale})
    foreign = config.replace(run_request=sign_run(config, bytes(32), RUN, 1.0)).to_run_config()
    site.refuses("operators", foreign)


def test_an_introduction_tells_an_unsigned_run_nothing(tmp_path):
    site = Site(tmp_path, f"operators={public_half(KEY)}")
    with pytest.raises(PolicyError, match="operators"):
        site.guard.answer(encode_frame({"run": small_config(tmp_path).to_run_config()}))


@pytest.mark.parametrize("damage", ["open", "gone", "rolled back", "damaged"])
def test_secret_and_budget_that_cannot_be_trusted(damage, tmp_path):
    """A server that could roll them back would have the same noise twice."""
    pytest.importorskip("dp_accounting")
    site = Site(tmp_path)
    folder = site.home.folder / "privacy"
    site.ask(PRIVATE)
    copy = (folder / "budget.sqlite").read_bytes()
    site.ask(PRIVATE, run=OTHER_RUN)
    _hosts.clear()
    if damage == "open":
        (folder / "site.secret").chmod(0o644)
    elif damage == "gone":
        (folder / "site.secret").unlink()
    else:
        text = copy if damage == "rolled back" else copy[:-4096] + bytes(4096)
        for file in folder.glob("budget.sqlite*"):
            file.unlink()
        (folder / "budget.sqlite").write_bytes(text)
    site.refuses("secret" if damage in {"open", "gone"} else "budget", PRIVATE)


@pytest.mark.parametrize(
    ("forged", "message"),
    [
        ({"privacy-clip": 0.0}, "privacy-clip: a number above 0 expected"),
        ({"privacy-noise": 0.0}, "privacy-epsilon or privacy-noise: one above 0 expected"),
        ({"query-data": "fresh"}, "with query-data = 'fresh': use same"),
        ({"local-steps": 2}, "with local-steps = 2: use 1"),
        ({"site-eval-fraction": 0.5}, "with site-eval-fraction = 0.5: use 0"),
        ({"privacy-noise": 1.0, "privacy-epsilon": 0.01}, "^refused by policy: privacy-noise$"),
    ],
)  # fmt: skip
def test_settings_that_would_void_what_a_private_run_promises(forged, message, tmp_path):
    """No code of ours has checked them at the server; nothing is measured, nothing is paid."""
    pytest.importorskip("dp_accounting")
    site = Site(tmp_path)
    with pytest.raises((ConfigError, PolicyError), match=message):
        site.ask(PRIVATE | forged)
    folder = site.home.folder / "privacy"
    if (folder / "budget.sqlite").exists():
        with closing(BudgetLedger(folder)) as budget:
            assert all(budget.numbers(each.id) == 0 for each in budget.sets())


SPY = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
for path in sys.argv[2:]:
    try:
        print("read", Path(path).read_bytes()[:9].hex())
    except PermissionError:
        print("denied", path)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="another user needs root")
def test_code_of_a_run_reads_nothing_under_another_user(tmp_path):
    """What the two units of deploy/systemd do: the same code, as the guard's user and another."""
    guard, app = 65001, 65002
    tmp_path.chmod(0o711)
    for parent in tmp_path.parents:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    site = Site(tmp_path)
    (note := tmp_path / "notes").mkdir(mode=0o700)
    (note / "1.txt").write_text("smith, 43")
    files = [note / "1.txt", site.home.folder / "privacy" / "site.secret"]
    for path in (note, *files, site.home.folder, site.home.folder / "privacy"):
        os.chown(path, guard, guard)
    python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable

    def run(user):
        command = [python, "-c", SPY, str(ROOT), *map(str, files)]
        return subprocess.run(
            command, user=user, group=user, extra_groups=[], capture_output=True, text=True,
            check=False, cwd="/",
        ).stdout  # fmt: skip

    assert run(guard) == "".join(f"read {path.read_bytes()[:9].hex()}\n" for path in files)
    assert run(app) == "".join(f"denied {path}\n" for path in files)
