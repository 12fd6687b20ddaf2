"""``dandelion server`` and ``dandelion client``: what they run, and that their status is true."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import processes
import pytest
from typer.testing import CliRunner

from client.privacy.site_secret import load_secret, make_secret
from client.sealed.identity import site_key
from dandelion.cli import server
from dandelion.cli.app import app
from dandelion.cli.client import explain, find_reason
from dandelion.deployment.deploy_home import (
    Home,
    local_address,
    superexec_command,
    superlink_command,
    supernode_command,
)
from dandelion.deployment.site_guard import DEFAULTS, node_config
from dandelion.deployment.supervisor import Keeper, Program, find_process, write_pid
from dandelion.engines.flower_simulation import EngineError
from shared.base.errors import ConfigError
from shared.protocol.site_id import site_of
from shared.sealed.boxes import public_bytes

ROOT = Path(__file__).resolve().parents[3]
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def home(tmp_path):
    return Home.at(tmp_path / "home")


@pytest.fixture
def certificates(tmp_path):
    folder = tmp_path / "certificates"
    script = ROOT / "deploy" / "certificates.sh"
    subprocess.run([script, folder, "superlink.example", "10.0.0.1"], check=True, stdout=-3)
    return folder


def program(tmp_path: Path, name: str, command: list[str]) -> Program:
    return Program(name, command, tmp_path, os.environ, tmp_path / f"{name}.log")


def test_a_superlink_keeps_its_state_in_a_file_and_runs_in_other_processes(home, certificates):
    command = superlink_command(home, "0.0.0.0", 8000, certificates)
    for words in (
        ["--isolation", "process"],
        ["--database", str(home.folder / "superlink.db")],
        ["--ssl-certfile", str(certificates / "server.crt")],
    ):
        assert words[1] == command[command.index(words[0]) + 1]
    assert "--disable-runtime-dependency-installation" in command
    assert "--enable-supernode-auth" in command
    assert "--insecure" not in command


def test_without_certificates_nothing_is_authenticated(home):
    command = superlink_command(home, "127.0.0.1", 8000, None)
    assert "--insecure" in command
    assert "--enable-supernode-auth" not in command
    assert "--insecure" in superexec_command(home, "127.0.0.1:8000", None)


def test_a_node_and_its_apps_run_with_patches_unless_they_are_to_be_as_flower_has_them(home):
    for stock, first in ((False, sys.executable), (True, str(Path(sys.executable).parent))):
        node = supernode_command(home, "a:1", "site='a'", 9094, (None, None), stock)
        execute = superexec_command(home, "127.0.0.1:9094", None, stock)
        assert node[0].startswith(first)
        assert execute[0].startswith(first)
        for words in (["--isolation", "process"], ["--superlink", "a:1"]):
            assert words[1] == node[node.index(words[0]) + 1]
        secrets = [each[each.index("--superexec-auth-secret-file") + 1] for each in (node, execute)]
        assert secrets == [str(home.secret())] * 2


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "127.0.0.1:8000"), ("127.0.0.1", "127.0.0.1:8000"), ("10.0.0.1", "10.0.0.1:8000")],
)
def test_a_servers_own_programs_find_it_where_it_listens(host, address):
    assert local_address(host, 8000) == address


def test_the_secret_of_a_superexec_is_made_once_and_for_its_owner_alone(home):
    first = home.secret().read_text()
    assert home.secret().read_text() == first
    assert home.secret().stat().st_mode & 0o077 == 0
    assert len(first) == 64


def test_a_certificate_that_is_not_there_is_named(home, tmp_path):
    with pytest.raises(EngineError, match=r"ca.crt: no such file; deploy/certificates.sh"):
        superlink_command(home, "127.0.0.1", 8000, tmp_path)
    with pytest.raises(EngineError, match=r"none\.key"):
        supernode_command(home, "a:1", "site='a'", 9094, (None, tmp_path / "none.key"))


def test_the_server_certificate_is_for_the_names_given_and_for_this_host(certificates):
    shown = subprocess.run(
        ["openssl", "x509", "-in", certificates / "server.crt", "-noout", "-ext", "subjectAltName"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in ("DNS:localhost", "127.0.0.1", "DNS:superlink.example", "10.0.0.1"):
        assert name in shown
    verified = subprocess.run(
        ["openssl", "verify", "-CAfile", certificates / "ca.crt", certificates / "server.crt"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert verified.returncode == 0
    assert (certificates / "server.key").stat().st_mode & 0o077 == 0


def test_a_second_server_certificate_has_the_same_authority(certificates):
    authority, server = ((certificates / n).read_bytes() for n in ("ca.crt", "server.crt"))
    script = ROOT / "deploy" / "certificates.sh"
    subprocess.run([script, certificates, "other.example"], check=True, stdout=-3)
    assert (certificates / "ca.crt").read_bytes() == authority
    assert (certificates / "server.crt").read_bytes() != server


def test_a_certificate_is_not_renewed_by_another_authority(certificates):
    """The key is kept elsewhere; without it every node would be locked out."""
    before = {path.name: path.read_bytes() for path in certificates.iterdir()}
    del before["ca.key"]
    (certificates / "ca.key").unlink()
    script = ROOT / "deploy" / "certificates.sh"
    done = subprocess.run([script, certificates, "other.example"], check=False, capture_output=True)
    assert done.returncode == 2
    assert b"bring it back" in done.stderr
    assert {path.name: path.read_bytes() for path in certificates.iterdir()} == before


def test_a_node_config_is_checked_before_anything_is_started(home):
    assert node_config(["partition-id=3", "site=a b"], home) == {
        **DEFAULTS,
        "store": str(home.folder / "store"), "partition-id": 3, "site": "a b",
        "privacy-home": str(home.folder / "privacy"),
    }  # fmt: skip
    with pytest.raises(ConfigError, match="unknown keys"):
        node_config(["partition-id=3", "gpu=1"], home)
    (home.folder / "own").mkdir()
    (home.folder / "own" / "visits.jsonl").write_text('{"note": "home", "outcome": 1}')
    own = ["site=a", f"data={json.dumps(str(home.folder / 'own'))}", "text-column=note"]
    assert node_config(own, home)["text-column"] == "note"
    with pytest.raises(ConfigError, match=r"label-column: .* note, outcome, got 'label'"):
        node_config([*own, "label-column=label"], home)
    with pytest.raises(EngineError, match="key=value"):
        node_config(["partition-id"], home)


def test_a_roster_without_the_sites_own_key_does_not_join(tmp_path, home):
    line = 'sites = {{ "ward-1" = "{}" }}'.format
    roster = tmp_path / "roster.toml"
    site = site_of({"site": "ward-1"})
    words = ["site=ward-1", f"roster={roster}"]
    with pytest.raises(ConfigError, match="a table \\[sites\\] of lines NAME"):
        node_config(words, home)
    roster.write_text(line(public_bytes(site_key(make_secret(tmp_path / "elsewhere"), site)).hex()))
    with pytest.raises(ConfigError, match="of site ward-1 expected, as 'dandelion client key'"):
        node_config(words, home)
    own = load_secret(home.folder / "privacy")
    roster.write_text(line(public_bytes(site_key(own, site)).hex()))
    assert node_config(words, home)["roster"] == str(roster)


def test_the_reason_of_a_refusal_is_what_flower_says():
    log = "noise\nExit Code: 305\n[code: 2004] Failed to activate SuperNode\nExit Code: 305\n"
    assert find_reason(log) == "Exit Code: 305; [code: 2004] Failed to activate SuperNode"
    assert find_reason("something else") == "something else"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["server", "up"], "either --certificates FOLDER or --insecure expected"),
        (["server", "stop"], "no server is up"),
        (["client", "join", "a:1"], "either --ca FILE or --insecure expected"),
        (["client", "join", "a:1", "--insecure"], "must have site"),
    ],
)
def test_a_command_that_cannot_work_says_why(words, message, tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_HOME", str(tmp_path / "home"))
    done = CliRunner().invoke(app, words)
    assert done.exit_code != 0
    assert message in str(done.exception)


def test_what_dies_is_started_again_and_what_keeps_dying_is_given_up(tmp_path):
    said = []
    dying = program(tmp_path, "dying", [sys.executable, "-c", "raise SystemExit(3)"])
    steady = program(tmp_path, "steady", SLEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dandelion.deployment.supervisor.RESTART_PAUSE_S", 0.05)
        patch.setattr("dandelion.deployment.supervisor.signal.signal", lambda number, handler: None)
        lost = Keeper([steady, dying], said.append).run(lambda each, status: each.deaths >= 3)
    assert lost is dying
    assert lost.deaths == 3
    assert said.count("dying ended with status 3; it is restarted") == 2
    assert steady.process.returncode == -signal.SIGTERM


def test_what_waits_for_a_program_that_died_is_started_again_too(tmp_path):
    dying = program(tmp_path, "dying", [sys.executable, "-c", "raise SystemExit(3)"])
    waiting, other = program(tmp_path, "waiting", SLEEP), program(tmp_path, "other", SLEEP)
    waiting.waits_for = "dying"
    processes_seen = {"waiting": set(), "other": set()}

    def give_up(each, status):
        for one in (waiting, other):
            processes_seen[one.name].add(one.process.pid)
        return each.deaths >= 3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dandelion.deployment.supervisor.RESTART_PAUSE_S", 0.05)
        patch.setattr("dandelion.deployment.supervisor.signal.signal", lambda number, handler: None)
        assert Keeper([waiting, other, dying], lambda text: None).run(give_up) is dying
    assert len(processes_seen["waiting"]) == 3
    assert len(processes_seen["other"]) == 1
    assert waiting.deaths == other.deaths == 0


def test_what_hangs_after_a_fatal_error_is_started_again(tmp_path):
    script = "import time; print('handshake error detected', flush=True); time.sleep(60)"
    hanging = program(tmp_path, "hanging", [sys.executable, "-c", script])
    hanging.fatal = "handshake error"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dandelion.deployment.supervisor.RESTART_PAUSE_S", 0.05)
        patch.setattr("dandelion.deployment.supervisor.signal.signal", lambda number, handler: None)
        lost = Keeper([hanging], lambda text: None).run(lambda each, status: each.deaths >= 2)
    assert lost is hanging
    assert hanging.tail().count("handshake error") == 2


def test_what_has_started_well_has_not_died_in_a_row(tmp_path):
    """A node that lost its server after an hour is not one that never got through."""
    script = "print('joined', flush=True)"
    each = program(tmp_path, "node", [sys.executable, "-c", script])
    each.well = "joined"
    deaths = []
    for _ in range(3):
        each.start()
        each.process.wait()
        each.check()
        deaths.append(each.deaths)
    each.well = "never said"
    each.start()
    each.process.wait()
    each.check()
    assert [*deaths, each.deaths] == [1, 1, 1, 2]


def test_a_log_does_not_grow_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("dandelion.deployment.supervisor.LARGEST_LOG_BYTES", 1000)
    script = "import time\nfor k in range(200): print('x' * 99, flush=True); time.sleep(0.002)"
    each = program(tmp_path, "chatty", [sys.executable, "-c", script])
    each.start()
    while each.check() is None:
        time.sleep(0.01)
    each.check()
    sizes = [each.log.stat().st_size, each.log.with_suffix(".log.1").stat().st_size]
    assert max(sizes) < 10_000
    assert set(each.tail()) <= {"x", "\n"}


def test_what_is_killed_leaves_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("dandelion.deployment.supervisor.tempfile.tempdir", str(tmp_path))
    script = (
        "import os, pathlib, signal; pathlib.Path(os.environ['DANDELION_SCRATCH'], 'x').touch()"
    )
    kill = "; os.kill(os.getpid(), signal.SIGKILL)"
    each = program(tmp_path, "killed", [sys.executable, "-c", script + kill])
    each.scratch = True
    each.start()
    assert each.process.wait() == -signal.SIGKILL
    (left,) = tmp_path.glob("dandelion-*/x")
    each.start()
    assert not left.exists()
    each.end()
    assert not list(tmp_path.glob("dandelion-*"))


def fast(monkeypatch, **seconds):
    for name, value in {"LOOK_S": 0.02, "RESTART_PAUSE_S": 0.02, **seconds}.items():
        monkeypatch.setattr(f"dandelion.deployment.supervisor.{name}", value)
    monkeypatch.setattr(
        "dandelion.deployment.supervisor.signal.signal", lambda number, handler: None
    )


def keep_until(words, each, heard=lambda text: None):
    """Keep a program until something is said of it, and 0.2 s longer; return all that was said.

    ``heard`` gets every line when it is said. It takes longer on a busy machine, and fails on none.
    """
    said = []

    def say(text):
        said.append(text)
        heard(text)
        if words in text:
            threading.Timer(0.2, keeper.stop).start()

    keeper = Keeper([each], say)
    latest = threading.Timer(processes.PATIENCE_S, keeper.stop)
    latest.start()
    try:
        assert keeper.run(lambda lost, status: False) is None
    finally:
        latest.cancel()
    return said


def test_what_does_not_get_through_is_spoken_of_once(tmp_path, monkeypatch):
    fast(monkeypatch, LATE_S=0.1)
    each = program(tmp_path, "supernode", SLEEP)
    each.well = "SuperNode ID"
    said = keep_until("not connected", each)
    assert [line for line in said if "not connected" in line] == [said[1]]
    assert len(said) == 2


def test_what_gets_through_is_said_and_the_last_word_is_no_bad_news(tmp_path, monkeypatch):
    fast(monkeypatch, LATE_S=0.1)
    server = tmp_path / "server"
    script = (
        f"import pathlib, time; server = pathlib.Path({str(server)!r})\n"
        "while not server.exists(): time.sleep(0.01)\n"
        "print('SuperNode ID: 7', flush=True); time.sleep(60)"
    )
    each = program(tmp_path, "supernode", [sys.executable, "-c", script])
    each.well, each.news = "SuperNode ID", "is connected to a:1"

    def serve(text):
        if "not connected" in text:
            server.touch()

    said = keep_until("is connected", each, serve)
    assert "not connected yet" in said[1]
    assert said[2:] == ["supernode is connected to a:1"]


def test_patience_may_end_while_the_next_start_goes_on(tmp_path, monkeypatch):
    fast(monkeypatch)
    each = program(tmp_path, "supernode", [sys.executable, "-c", "import time; time.sleep(0.7)"])
    lost = Keeper([each], lambda text: None).run(
        lambda p, status: status is None and p.seconds_failing() > 0.7
    )
    assert lost is each
    assert each.deaths > 0


def test_a_start_that_waits_for_its_server_has_not_failed(tmp_path, monkeypatch):
    fast(monkeypatch, LATE_S=0.1)
    each = program(tmp_path, "supernode", SLEEP)
    each.deaths, each.failing_since = 1, time.monotonic() - 99
    each.start()
    time.sleep(0.2)
    assert each.check() is None
    assert each.seconds_failing() == 0.0
    each.end()


PARENT = """
import os, sys
from pathlib import Path
from dandelion.deployment.site_guard import DEFAULTS, node_config
from dandelion.deployment.supervisor import Keeper, Program
folder = Path(sys.argv[1])
child = [sys.executable, "-c", "import time; time.sleep(60)"]
each = Program("child", child, folder, os.environ, folder / "child.log")
Keeper([each], lambda text: None).run(lambda lost, status: False)
"""


def wait_until_gone(pid_file):
    processes.until(lambda: find_process(pid_file) is None, f"{pid_file} names no process")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_children_end_with_a_parent_that_is_killed(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, tmp_path], cwd=ROOT)
    file = tmp_path / "child.pid"
    processes.until(lambda: find_process(file) is not None, "the child runs")
    parent.kill()
    parent.wait()
    wait_until_gone(file)


def test_an_orphan_is_found_by_its_number_and_ended_before_the_next_start(tmp_path, monkeypatch):
    fast(monkeypatch)
    orphan = subprocess.Popen(SLEEP, start_new_session=True)
    each = program(tmp_path, "supernode", SLEEP)
    write_pid(each.pid_file, orphan.pid)
    reaper = threading.Thread(target=orphan.wait)  # as init does
    reaper.start()
    said = keep_until("ended process", each)
    reaper.join(processes.PATIENCE_S)
    assert orphan.returncode == -signal.SIGTERM
    assert said[0] == f"ended process {orphan.pid}: a supernode that was left here"


def test_another_process_of_the_same_number_is_no_orphan(tmp_path):
    each = program(tmp_path, "supernode", SLEEP)
    each.pid_file.write_text(f"{os.getpid()} 1")  # it started at another time
    assert each.end_orphan() is None


def test_a_key_that_is_not_registered_and_one_in_use_are_told_apart():
    log = "[code: 2004] Failed to activate SuperNode\n"
    stranger, twice = explain(log, was_in=False), explain(log, was_in=True)
    assert "knows no such key" in stranger
    assert "dandelion server register" in stranger
    assert "the key is in use" in twice
    assert explain("certificate verify failed: x", was_in=False) == "certificate verify failed: x"


def test_a_node_is_not_joined_twice_from_one_home(home):
    write_pid(home.pid, os.getpid())
    words = ["client", "join", "a:1", "--insecure", "--home", str(home.folder), "--set", "site=a"]
    done = CliRunner().invoke(app, words)
    assert f"process {os.getpid()} already runs this node" in str(done.exception)


TRACE = """Traceback (most recent call last):
  File "server/run.py", line 9, in serve
shared.base.errors.StalledError: 9 sites needed for round 1, 3 came within 5 s
"""


def failed_run(monkeypatch, wait):
    answers = {"run": {"run-id": "7"}, "supernode": {"success": True, "node-id": "12"}}
    monkeypatch.setattr(server, "_flwr", lambda home, *words, quiet=False: answers[words[0]])
    monkeypatch.setattr(server, "_wait", wait)


def test_a_run_that_fails_prints_the_error_of_the_serverapp(home, monkeypatch):
    failed_run(monkeypatch, lambda home, run_id: ("finished:failed", TRACE))
    done = CliRunner().invoke(app, ["server", "run", "--home", str(home.folder)])
    assert isinstance(done.exception, EngineError)
    assert "StalledError: 9 sites needed for round 1, 3 came within 5 s" in str(done.exception)


def test_words_that_begin_with_one_token_are_refused_before_anything_starts(home, monkeypatch):
    monkeypatch.setattr(server, "_flwr", lambda *words, **named: pytest.fail("it has started"))
    pairs = ["task=classification", "label-words=bad, good", "label-scoring=first"]
    words = [word for pair in pairs for word in ("--set", pair)]
    done = CliRunner().invoke(app, ["server", "run", "--home", str(home.folder), *words])
    assert isinstance(done.exception, ConfigError)
    assert "label-words" in str(done.exception)


def test_a_command_that_is_interrupted_says_that_the_run_goes_on(home, monkeypatch):
    def interrupt(home, run_id):
        raise KeyboardInterrupt

    failed_run(monkeypatch, interrupt)
    done = CliRunner().invoke(app, ["server", "run", "--home", str(home.folder)])
    assert done.exit_code == 130
    assert "The run goes on without this command" in done.output
    assert f"dandelion server stop --home {home.folder} --run 7" in done.output


def test_registering_a_key_prints_a_sentence(home, monkeypatch):
    failed_run(monkeypatch, None)
    done = CliRunner().invoke(app, ["server", "register", "a.pub", "--home", str(home.folder)])
    assert "The key a.pub is registered as node 12; its site may join now" in done.output


def test_a_signal_ends_everything(tmp_path):
    steady = program(tmp_path, "steady", SLEEP)
    keeper = Keeper([steady], lambda text: None)
    threading.Timer(0.2, keeper.stop).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dandelion.deployment.supervisor.signal.signal", lambda number, handler: None)
        assert keeper.run(lambda each, status: True) is None
    assert steady.process.returncode == -signal.SIGTERM


def test_a_process_file_names_a_process_or_nothing(tmp_path):
    assert find_process(tmp_path / "none") is None
    (tmp_path / "bad").write_text("x")
    assert find_process(tmp_path / "bad") is None
    (tmp_path / "mine").write_text(str(os.getpid()))
    assert find_process(tmp_path / "mine") == os.getpid()
