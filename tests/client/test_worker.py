"""The resident worker: started once, found again, replaced when it must be, and never two of it."""

import base64
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from client.app import app
from client.site.node_config import NodeConfig
from client.worker.client import WorkerClient, end, ensure_worker, status
from client.worker.paths import paths_of, private_folder, take_lock
from dandelion.engines.local import SERVER_NODE, LocalGrid, NodeApp, run_local
from server.run import serve
from shared.base.errors import ConfigError, WorkerError
from shared.config.schema import Config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"num-rounds": 2, "num-clients": 2, "queries": 2, "max-samples": 40, "block-size": 16,
            "eval-blocks": 4, "save-model": False}  # fmt: skip
HEAVY = {
    "torch",
    "transformers",
    "numba",
    "datasets",
    "safetensors",
    "peft",
    "client.site.replica_host",
}
ALONE = """
import base64, json, sys
sys.argv[0] = "flwr-clientapp"
from flwr.supercore.task_identity import TaskIdentity
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message
from client.app import app
given = json.load(sys.stdin)
message = message_from_proto(Message.FromString(base64.b64decode(given["message"])))
reply = app(message, Context(1, given["id"], given["node"], RecordDict(), given["run"]))
data = base64.b64encode(message_to_proto(reply).SerializeToString()).decode()
print(json.dumps({"reply": data, "modules": sorted(sys.modules)}))
"""


class OneMessage:
    """A client that has a process of its own for every message, as Flower's deployment has."""

    def __init__(self):
        self.modules: list[set[str]] = []  # that each process had imported when it was done

    def __call__(self, message: Message, context: Context) -> Message:
        given = {
            "message": base64.b64encode(message_to_proto(message).SerializeToString()).decode(),
            "id": context.node_id, "node": context.node_config, "run": context.run_config,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", ALONE],
            cwd=ROOT, input=json.dumps(given), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        self.modules.append(set(result["modules"]))
        return message_from_proto(ProtoMessage.FromString(base64.b64decode(result["reply"])))


@pytest.fixture
def runtime(monkeypatch):
    """Sockets and stores of this test alone; workers of it are ended with it.

    The folder's name is short, as that of a socket has to be.
    """
    folder = Path(tempfile.mkdtemp())
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    yield folder
    for lock in (folder / "dandelion").glob("*.lock"):
        if (lock_file := take_lock(lock)) is None:
            os.kill(int(lock.read_text()), signal.SIGKILL)
        else:
            lock_file.close()
    shutil.rmtree(folder, ignore_errors=True)


def node(number: int = 0, **more: object) -> dict[str, object]:
    return {"partition-id": number, "num-partitions": 2, "worker": "resident", **more}


def federation(
    folder: Path, name: str, nodes: list[dict[str, object]], client: NodeApp = app, **more: object
) -> str:
    """Train with these nodes in the local engine; return the digest."""
    given = {"output-dir": str(folder), "run-name": name} | more
    run = Config.from_run_config({**SETTINGS, **given})
    contexts = {
        SERVER_NODE + 1 + i: Context(
            1, SERVER_NODE + 1 + i, config, RecordDict(), run.to_run_config()
        )
        for i, config in enumerate(nodes)
    }
    done = serve(LocalGrid(client, contexts), run)
    return json.loads((done / "summary.json").read_text())["digest"]


def test_resident_workers_give_the_digest_of_inline_ones(runtime):
    inline = run_local(Config.from_run_config({**SETTINGS, "output-dir": str(runtime)}))
    expected = json.loads((inline / "summary.json").read_text())["digest"]
    assert federation(runtime, "first", [node(0), node(1)]) == expected
    workers = [status(paths_of(node(i))) for i in (0, 1)]
    assert workers[0]["pid"] != workers[1]["pid"]
    assert [w["calls"] for w in workers] == [3, 3]  # one introduction and two rounds
    # a second run finds the same processes; and so does one of another configuration
    assert federation(runtime, "second", [node(0), node(1)]) == expected
    other = federation(runtime, "third", [node(0), node(1)], queries=3)
    assert other != expected
    assert [status(paths_of(node(i)))["pid"] for i in (0, 1)] == [w["pid"] for w in workers]


def test_a_process_of_one_message_loads_no_model_and_imports_no_torch(runtime):
    """Not in the first round, where it starts the worker, and not in those that follow."""
    expected = federation(runtime, "stays", [node()])
    end(paths_of(node()))
    config = {"partition-id": 0, "num-partitions": 2}  # nothing said of a worker: resident
    client, seen = OneMessage(), []

    def noting(message: Message, context: Context) -> Message:
        reply = client(message, context)
        seen.append(status(paths_of(config)))
        return reply

    assert federation(runtime, "alone", [config], noting) == expected
    assert [worker["calls"] for worker in seen] == [1, 2, 3]  # an introduction and two rounds
    assert len({worker["pid"] for worker in seen}) == 1
    assert seen[-1]["torch"]
    for modules in client.modules:
        assert not modules & HEAVY


def test_the_socket_is_for_its_owner_alone(runtime):
    place = paths_of(node())
    ensure_worker(place, 60)
    assert stat.S_IMODE(place.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(place.store.stat().st_mode) == 0o700


def test_a_folder_that_others_can_enter_is_refused(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="mode 0700"):
        private_folder(tmp_path / "open")
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(ConfigError, match="mode 0700"):
        private_folder(tmp_path / "link")


def test_a_socket_that_a_dead_worker_left_is_replaced(runtime):
    place = paths_of(node())
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(place.socket))
    assert ensure_worker(place, 60)["calls"] == 0


def test_a_worker_that_was_killed_leaves_no_socket_once_its_node_ends(runtime):
    place = paths_of(node())
    os.kill(ensure_worker(place, 60)["pid"], signal.SIGKILL)
    assert place.socket.exists()
    end(place)
    assert not place.socket.exists()


def test_a_worker_that_was_killed_is_started_again_and_catches_up_from_its_store(runtime):
    config = node(**{"store-every": 0.0})
    expected = federation(runtime, "undisturbed", [config])
    place = paths_of(config)
    federation(runtime, "cut", [config], **{"num-rounds": 1})
    os.kill(status(place)["pid"], signal.SIGKILL)
    result = federation(runtime, "cut", [config], resume=str(runtime / "cut"))
    assert result == expected


def test_a_worker_that_dies_at_its_work_is_started_once_more_and_then_it_is_an_error(runtime):
    place, over = paths_of(node()), threading.Event()

    def kill_at_work() -> None:
        while not over.wait(0.02):
            if (result := status(place)) and result["calls"]:
                os.kill(result["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill_at_work)
    killer.start()
    try:
        with pytest.raises(WorkerError, match="died 2 times"):
            WorkerClient(Config.from_run_config(SETTINGS).to_run_config(), node()).hello()
    finally:
        over.set()
        killer.join()


def test_a_worker_of_other_source_files_is_replaced(runtime):
    place = paths_of(node())
    old = ensure_worker(place, 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("client.worker.client.source_digest", lambda *_: b"other")
        new = ensure_worker(place, 60)
    assert new["pid"] != old["pid"]


def test_two_starts_at_once_make_one_worker(runtime):
    place = paths_of(node())
    place.store.mkdir(parents=True)
    command = [
        sys.executable,
        "-m",
        "client.worker.server",
        str(place.socket),
        str(place.lock),
        "60",
    ]
    both = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) for _ in range(2)]
    while sum(process.poll() is None for process in both) == 2:
        time.sleep(0.05)
    result = ensure_worker(place, 60)
    assert result["pid"] in [process.pid for process in both]
    end(place)
    assert [process.wait(60) for process in both] == [0, 0]
    assert not place.socket.exists()


def test_a_worker_that_nobody_calls_stops_and_leaves_its_replica(runtime):
    config = node(**{"worker-idle": 1.0})
    federation(runtime, "run", [config])
    place = paths_of(config)
    lock = take_lock(place.lock, 20)
    assert lock is not None
    lock.close()
    assert (place.store / "replica.safetensors").exists()


def test_a_stopped_worker_has_left_its_replica(runtime):
    config = node(**{"store-every": 3600.0})
    federation(runtime, "run", [config])
    place = paths_of(config)
    end(place)
    again = json.loads(
        WorkerClient(Config.from_run_config(SETTINGS).to_run_config(), config).hello()
    )
    assert again["round"] == 1  # the second round's entry had not come back yet


def test_an_error_at_the_worker_is_said_by_the_client_app(runtime):
    run = Config.from_run_config(SETTINGS).to_run_config() | {"model": "none-such/at-all"}
    with pytest.raises(WorkerError, match="none-such"):
        WorkerClient(run, node()).hello()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"site": "a", "gpu": 1}, "unknown keys"),
        ({"site": "a", "worker": "resdient"}, "unknown worker 'resdient'; known: auto"),
        ({"site": "a", "store": "relative"}, "absolute"),
        ({"site": "a", "device": 0}, "device: str expected"),
        ({}, "must have site"),
    ],
)
def test_a_bad_node_config_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        NodeConfig.of(config)
