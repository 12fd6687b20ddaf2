"""The guard answers on its own node's config, whatever code that a server sends asks of it."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from processes import until
from small_config import small_config

from client.guard.process import Guard
from client.guard.relay import GuardRelay
from client.site.replica_host import _hosts
from client.worker.client import send_call, status
from client.worker.paths import WorkerPaths, paths_at
from client.worker.protocol import STOP, decode_answer, encode_frame
from dandelion.deployment.deploy_home import Home, programs
from dandelion.deployment.site_guard import config_of_apps, guard_program, node_config
from shared.base.errors import ConfigError, PolicyError, WireError, WorkerError
from shared.problem.source import source_digest
from shared.protocol.messages import Request, decode_reply, encode_request

ROOT = Path(__file__).resolve().parents[3]
RUN = bytes(range(16))


def make_notes(folder, count=12):
    """A site's own data: a folder of texts."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.txt").write_text(f"patient {number} was seen and went home. " * 3)
    return folder


def request(number=1, **changes):
    """The bytes of a server's request for the base model."""
    fields = {"learning_rate": 0.01, "digest": bytes(16), "run": RUN, "code": source_digest("")}
    return encode_request(Request(round=number, **{**fields, **changes}))


def introduction(answer):
    """What a site says of itself in an answer."""
    return json.loads(decode_answer(answer)[0])


@pytest.fixture(autouse=True)
def _no_host_of_another_test():
    _hosts.clear()
    yield
    _hosts.clear()


@pytest.fixture
def home(tmp_path):
    return Home.at(tmp_path / "home")


def guard_of(home, *pairs):
    """A guard in this process, with the config that ``client guard`` makes of its pairs."""
    return Guard(node_config(["site=a", *pairs], home), 60.0)


def ask(guard, run, *parts, node=None):
    """What a ClientApp would be answered, or the error."""
    return guard.answer(encode_frame({"run": run, "node": node or {}}, parts))


def test_a_call_cannot_say_what_the_guard_reads(home, tmp_path):
    """Neither another node's config in the frame, nor a path in the run's settings."""
    own, others = make_notes(tmp_path / "own"), make_notes(tmp_path / "others", 30)
    guard = guard_of(home, f"data={own}")
    run = small_config(tmp_path).to_run_config()
    alone = introduction(ask(guard, run))
    forged = ask(guard, run, node={"site": "b", "data": str(others), "allow-modes": ""})
    assert introduction(forged) == alone
    assert alone["site"] == "a"


def test_a_guard_refuses_a_server_with_other_code(home, tmp_path):
    run = small_config(tmp_path).to_run_config()
    with pytest.raises(WireError, match="other source files"):
        ask(guard_of(home), run, request(code=bytes(16)))


def test_only_our_own_errors_are_told_in_words(home):
    guard = guard_of(home)
    assert guard.reason(OSError("/srv/ward-3/smith.txt")) == "OSError"
    assert guard.reason(PolicyError("min-batch")) == "PolicyError: refused by policy: min-batch"


def test_code_of_a_run_gets_the_socket_and_no_name_of_data(home, tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_NODE", "--set data=/srv/ward-3")
    make_notes(own := tmp_path / "own")
    program = guard_program(home, node_config([f"data={own}", "site=a"], home))
    assert f'data="{own}"' in program.command
    assert config_of_apps(Path("/run/x.sock")) == 'guard="/run/x.sock"'
    (executor,) = programs(home, {"superexec": []}, "").values()
    assert not [value for value in executor.environment.values() if str(own) in value]
    assert "/srv/ward-3" not in str(executor.environment)


def test_a_path_that_no_socket_can_have_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="too long for a socket"):
        paths_at(tmp_path / ("x" * 100), tmp_path)


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


class Running:
    """A guard in a process of its own, as ``client join`` starts it."""

    def __init__(self, folder, *words):
        self.folder, self.words = folder, words
        self.paths = WorkerPaths(folder / "h" / "store", folder / "g.sock", Path())
        self.start()

    def start(self):
        command = [sys.executable, "-P", "-m", "dandelion", "client", "guard"]
        command += ["--home", str(self.folder / "h"), "--socket", str(self.paths.socket)]
        self.process = subprocess.Popen(
            [*command, "--set", "site=a", *self.words],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=self.folder,
        )  # fmt: skip
        until(lambda: self.process.poll() is not None or status(self.paths), "the guard is there")
        assert self.process.poll() is None

    def train(self, run, number=1, **changes):
        reply, _ = GuardRelay(run, str(self.paths.socket)).train(request(number, **changes), None)
        return decode_reply(reply)


@pytest.mark.slow
def test_a_guard_of_its_own_process_relays_refuses_and_survives_kill(runtime):
    """One process for all of it, since each takes seconds to start."""
    run = small_config(runtime, round_timeout=120.0).to_run_config()
    guard = Running(runtime, "--set", f"data={make_notes(runtime / 'own')}", "--group", "root")
    try:
        assert stat.S_IMODE(guard.paths.socket.stat().st_mode) == 0o660
        first = guard.train(run)
        with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
            send_call(guard.paths.address, STOP, encode_frame({}), 5)
        with pytest.raises(PolicyError, match=r"^refused by policy: eps-range$"):
            guard.train({**run, "eps": 0.5})
        with pytest.raises(WorkerError, match=r"other source files.*the site's own log says more"):
            guard.train(run, code=bytes(16))
        guard.process.send_signal(signal.SIGKILL)
        guard.process.wait()
        guard.start()
        again = guard.train(run)
        assert again.differences.tobytes() == first.differences.tobytes()
        guard.process.terminate()
        assert guard.process.wait(60) == 0
        assert not guard.paths.socket.exists()
    finally:
        guard.process.kill()


def test_a_guard_that_is_away_is_an_error_that_says_so(runtime, monkeypatch):
    monkeypatch.setattr("client.guard.relay.START_S", 0.2)
    with pytest.raises(WorkerError, match=r"the guard has not answered Train for 0\.2 s"):
        GuardRelay({}, str(runtime / "none.sock")).train(b"", None)


@pytest.mark.parametrize(
    ("policy", "taken", "slept"),
    [
        ([], 0.03, 0.02), ([], 0.13, 0.02), (["answer-raster=1"], 0.25, 0.75),
        (["answer-raster=0"], 0.03, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("fails", [False, True])
def test_answers_and_refusals_leave_on_a_raster(policy, taken, slept, fails, home, monkeypatch):
    """Their time would tell how long the draws of noise took, and how large a batch was."""
    guard, now, pauses = guard_of(home, *policy), [100.0], []

    def work(frame, context):
        now[0] += taken
        if fails:
            raise PolicyError("min-batch")
        return b"answer"

    monkeypatch.setattr(guard, "_work", work)
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=pauses.append)
    monkeypatch.setattr("client.guard.process.time", clock)
    for call in (guard.train, guard.hello):
        with pytest.raises(PolicyError) if fails else nullcontext():
            assert call(b"", None) == b"answer"
    assert pauses == ([] if slept is None else [pytest.approx(slept)] * 2)


def test_a_call_that_hangs_ends_the_guard_and_not_the_node(home, monkeypatch):
    """It cannot be ended by a run that says how long it takes: a minute is the least."""
    guard = guard_of(home)
    frame = encode_frame({"run": {"round-timeout": 0.01}}, [b"x"])
    assert guard.limit_s(frame) == 60.0
    ended = []
    monkeypatch.setattr(guard, "limit_s", lambda frame: 0.05)
    monkeypatch.setattr(guard, "answer", lambda frame: time.sleep(0.3) or b"late")
    monkeypatch.setattr(guard, "give_up", lambda: ended.append(True))
    assert guard.train(frame, None) == b"late"
    assert ended == [True]
