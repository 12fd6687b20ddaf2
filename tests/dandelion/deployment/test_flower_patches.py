"""Flower's programs without their waits: what is replaced, what is not, and that it is Flower's."""

import contextlib
import itertools
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND, TaskType
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.retry import http_retry
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor import ExecutionSpec, SubprocessExecutor, subprocess_executor
from flwr.supernode import start_client_internal
from processes import PATIENCE_S

from dandelion.deployment import deploy_home, flower_patches, supervisor
from dandelion.deployment.deploy_home import CLIENT_APP_MODULES, SERVER_APP_MODULES, Home

PATCHES = Path(flower_patches.__file__)


@pytest.fixture
def patched():
    """This process as a program of Flower's is; put back afterwards."""
    pulls = [inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree]
    with pytest.MonkeyPatch.context() as patch:
        for pull in pulls:
            patch.setitem(pull.__kwdefaults__, "initial_backoff", 1)
        patch.setattr(http_retry, "MAX_RETRY_DELAY", 20)
        patch.setattr(http_retry, "RetryInvoker", http_retry.RetryInvoker)
        patch.setattr(tempfile, "tempdir", tempfile.tempdir)
        patch.setattr(signal, "raise_signal", signal.raise_signal)
        flower_patches.shorten_waits()
        yield pulls


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    script = PATCHES.parents[2] / "deploy" / "certificates.sh"
    subprocess.run([script, folder, "127.0.0.1"], check=True, stdout=subprocess.DEVNULL)
    return folder


@contextlib.contextmanager
def listening(answer):
    """A server that does something with each connection; its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"https://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def failure(url, ca):
    """How a request fails there."""
    import ssl

    with pytest.raises(httpx.TransportError) as caught:
        httpx.get(url, verify=ssl.create_default_context(cafile=ca), timeout=10)
    return caught.value


def test_a_node_asks_soon_after_a_message_and_then_ever_less_often():
    slept: list[float] = []
    clock = flower_patches.Clock(slept.append)
    for seconds in (0.5, 0.5, *[3] * 6, 0.5, 3, 7):
        clock.sleep(seconds)
    assert slept == [0.02, 0.02, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0, 0.02, 0.2, 7]
    assert clock.monotonic() > 0


def test_flower_sleeps_as_long_as_is_replaced():
    """Were it another number, the node would sleep as long as Flower does."""
    source = Path(start_client_internal.__file__).read_text()
    assert source.count("time.sleep(3)") == 1
    assert source.count("time.sleep(0.5)") == 2
    assert source.count("time.sleep(") == 3


@pytest.mark.parametrize("task", sorted(TaskType))
@pytest.mark.parametrize("install", [False, True])
@pytest.mark.parametrize("trust", [(True, None), (False, "/ca.crt"), (False, None)])
@pytest.mark.parametrize("parent", [None, 7])
def test_a_task_gets_the_command_that_flower_gives_it(task, install, trust, parent, monkeypatch):
    spec = ExecutionSpec(
        task_type=task, runtime_api_address="127.0.0.1:1", token="t" * 8, insecure=trust[0],
        root_certificates_path=trust[1], runtime_dependency_install=install, parent_pid=parent,
        suppress_output=False, task_id=3,
    )  # fmt: skip
    started: list[list[str]] = []
    monkeypatch.setattr(subprocess_executor.subprocess, "Popen", started.append)
    SubprocessExecutor().launch(spec)
    assert flower_patches.task_command(spec) == started[0]
    assert flower_patches.task_command(spec)[0] == TASK_TYPE_TO_COMMAND[task]


def test_what_is_not_there_yet_is_looked_for_soon(patched):
    for pull in patched:
        assert pull.__kwdefaults__["initial_backoff"] == 0.05
    delays = itertools.islice(http_retry.make_simple_http_retry_invoker().wait_gen_factory(), 5)
    assert list(delays) == [1, 2, 4, 4, 4]


def test_another_flower_is_refused_by_name():
    with pytest.raises(
        SystemExit, match=r"Flower 1\.41 or 1\.42 expected, got .* without 'gone'; .*--stock"
    ):
        flower_patches.replace({}, "gone", 1)


def test_the_installed_flower_is_one_that_the_patches_are_for():
    assert flower_patches.find_missing() == []
    assert deploy_home.find_misfit() == ""
    assert deploy_home.program_command("flower-supernode")[-2:] == [
        str(PATCHES), "flower-supernode"]  # fmt: skip


def test_the_process_that_supervises_does_not_import_flower():
    code = "import sys; from dandelion.deployment.deploy_home import program_command as p; "
    code += "p('flower-supernode'); print('flwr' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("target", "name", "lacks"),
    [
        (run_superexec, "get_executor", "flwr.supercore.superexec.run_superexec.get_executor"),
        (http_retry, "MAX_RETRY_DELAY", "flwr.supercore.retry.http_retry.MAX_RETRY_DELAY"),
        (inflatable_utils, "pull_objects", r"pull_objects\(initial_backoff\)"),
    ],
)
def test_another_flower_runs_its_own_programs_and_it_is_said(
    target, name, lacks, monkeypatch, caplog
):
    monkeypatch.delattr(target, name)
    missing = ", ".join(flower_patches.find_missing())
    monkeypatch.setattr(deploy_home, "missing_names", lambda: missing)
    command = deploy_home.program_command("flower-superexec")
    assert [Path(word).name for word in command] == ["flower-superexec"]
    (said,) = caplog.messages
    assert re.search(f"it lacks .*{lacks}.*; flower-superexec runs as Flower's own program", said)
    caplog.clear()
    assert deploy_home.program_command("flower-superexec", stock=True) == command
    assert not caplog.messages


def test_a_flower_without_a_module_runs_its_own_programs(monkeypatch, caplog, tmp_path):
    patches = tmp_path / "patches.py"
    patches.write_text("import no_such_part_of_flower\n")
    monkeypatch.setattr(deploy_home, "PATCHES", patches)
    deploy_home.missing_names.cache_clear()
    try:
        command = deploy_home.program_command("flower-supernode")
    finally:
        deploy_home.missing_names.cache_clear()
    assert [Path(word).name for word in command] == ["flower-supernode"]
    assert "no_such_part_of_flower" in caplog.text


@pytest.fixture
def broken(certificates):
    """How a request fails where a balancer takes the connection and has no server behind it."""
    with listening(lambda connection: connection.recv(1 << 16)) as url:
        return failure(url, certificates / "ca.crt")


def tried(error):
    """What comes of a call that fails twice and then succeeds."""
    failures = iter([error, error])

    def call() -> str:
        for each in failures:
            raise each
        return "answer"

    invoker = http_retry.make_simple_http_retry_invoker()
    invoker.wait_function = lambda seconds: None
    return invoker.invoke(call)


def test_a_handshake_that_broke_off_is_tried_again(patched, broken):
    assert tried(broken) == "answer"


def test_flower_alone_gives_it_up(broken):
    """And its SuperNode then hangs until it is ended; else there were nothing to replace."""
    with pytest.raises(httpx.TransportError, match="EOF"):
        tried(broken)


def test_a_server_that_is_not_the_right_one_is_given_up(patched, certificates, tmp_path):
    """Neither one whose certificate another authority signed nor one that speaks no TLS."""
    import ssl

    other = tmp_path / "other"
    script = PATCHES.parents[2] / "deploy" / "certificates.sh"
    subprocess.run([script, other, "127.0.0.1"], check=True, stdout=subprocess.DEVNULL)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(other / "server.crt", other / "server.key")

    def wrong(connection):
        context.wrap_socket(connection, server_side=True)

    invoker = http_retry.make_simple_http_retry_invoker()
    for answer, words in ((wrong, "CERTIFICATE_VERIFY_FAILED"), (plain, "SSL")):
        with listening(answer) as url:
            error = failure(url, certificates / "ca.crt")
        assert words in str(error)
        assert invoker.should_giveup(error)


def plain(connection):
    connection.recv(1)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_who_starts_it_calls_its_variables_as_it_does(tmp_path):
    assert supervisor.SCRATCH_VARIABLE == flower_patches.SCRATCH_VARIABLE
    assert Home.at(tmp_path).environment("one,two")[flower_patches.PRELOAD_VARIABLE] == "one,two"


@pytest.mark.slow
@pytest.mark.parametrize("loaded", [CLIENT_APP_MODULES, SERVER_APP_MODULES])
def test_what_a_task_finds_imported_is_there_and_none_of_it_is_ours_or_heavy(loaded):
    """The forkserver says nothing of a module that is missing."""
    code = f"import sys, {loaded}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PATCHES.parents[2],
    )
    modules = set(done.stdout.split())
    assert "flwr" in modules
    assert not modules & {"server", "client", "shared", "dandelion", "torch"}


WAITS = """
import signal, sys, threading, time
sys.path.insert(0, {folder!r})
import flower_patches
{first}
signal.signal(signal.SIGINT, lambda number, frame: sys.exit(7))
main = threading.get_ident()

def interrupt():
    while sys._current_frames()[main].f_code.co_filename != threading.__file__:
        time.sleep(0.01)
    time.sleep(0.3)  # the main thread waits, or is about to
    signal.raise_signal(signal.SIGINT)
    print("raised", flush=True)

threading.Thread(target=interrupt, daemon=True).start()
threading.Event().wait()
"""


def test_a_task_whose_parent_is_gone_ends_whatever_it_waits_for():
    """Flower's monitor raises a signal in its own thread, which wakes nobody."""
    codes = []
    for first in ("flower_patches.shorten_waits()", ""):
        script = WAITS.format(folder=str(PATCHES.parent), first=first)
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        with process:
            process.stdout.readline()  # it has been raised, or the process has ended
            try:
                codes.append(process.wait(PATIENCE_S if first else 1))
            except subprocess.TimeoutExpired:
                codes.append(None)
                process.kill()
    assert codes == [7, None]


@pytest.mark.slow
@pytest.mark.parametrize("name", flower_patches.PROGRAMS)
def test_it_is_flowers_program(name):
    done = subprocess.run(
        [sys.executable, "-P", PATCHES, name, "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"Flower version: {version('flwr')}" in done.stdout


@pytest.mark.slow
def test_a_program_that_it_does_not_know_is_refused():
    done = subprocess.run(
        [sys.executable, "-P", PATCHES, "flower-hub"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "flower-supernode, flower-superexec expected, got 'flower-hub'" in done.stderr
