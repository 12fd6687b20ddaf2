"""A federation of real processes for tests: TLS, registered keys, a proxy before each node."""

import contextlib
import functools
import json
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import processes
from network import Loopback, Namespaces, may_make_namespaces
from processes import until
from proxy import CountingProxy

from dandelion.engines.flower_simulation import free_port
from dandelion.engines.process_tree import end_session, end_with_parent

ROOT = Path(__file__).resolve().parents[2]
DANDELION = [sys.executable, "-m", "dandelion"]


def descendants(pid: int) -> list[int]:
    """The processes below a process."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                below.setdefault(parent, []).append(int(entry.name))
    below_pid, look = [], [pid]
    while look:
        look += (mine := below.get(look.pop(), []))
        below_pid += mine
    return below_pid


def named(pids: list[int], word: str) -> list[int]:
    """Those whose command line has a word."""
    matching = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                matching.append(pid)
    return matching


def destroy(pids: list[int]) -> None:
    """``kill -9``."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def rows(folder: Path, query: str) -> list[tuple]:
    """What a run's ledger says; nothing where there is none yet."""
    file = folder / "ledger.sqlite"
    if not file.exists():
        return []
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)) as db:
        return db.execute(query).fetchall()


def last_round(folder: Path) -> int:
    """The newest round that is committed."""
    newest = rows(folder, "SELECT coalesce(max(round), 0) FROM entries")
    return newest[0][0] if newest else 0


@dataclass
class Federation:
    """One server and its nodes, on this host; ``end`` leaves no process behind."""

    folder: Path
    nodes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    commands: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @functools.cached_property
    def net(self) -> Loopback | Namespaces:
        """What lies between the machines; made when it is first needed."""
        return Namespaces() if may_make_namespaces() else Loopback(free_port())

    @property
    def proxies(self) -> dict[str, CountingProxy]:
        return self.net.proxies

    @property
    def certificates(self) -> Path:
        return self.folder / "certificates"

    def start(
        self, where: list[str], *words: str, log: str, root: Path = ROOT
    ) -> "subprocess.Popen[bytes]":
        """One of our commands, in the background; ``root`` has the code that is run and sent."""
        with (self.folder / f"{log}.out").open("ab") as out:
            process = subprocess.Popen(
                [*where, *DANDELION, *words],
                cwd=root,
                env={**os.environ, "PYTHONPATH": str(root)},
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509  (one system call, before exec)
            )
        self.commands.append(process)
        return process

    def up(self) -> None:
        """Make certificates and start the server."""
        self.make_certificates()
        words = ["--host", self.net.host, "--port", str(self.net.port)]
        words += ["--certificates", str(self.certificates), "--home", str(self.home)]
        self.server = self.start(self.net.server(), "server", "up", *words, log="up")
        until(lambda: self.command("server", "status").returncode == 0, "server is up")

    def make_certificates(self, name: str = "certificates") -> Path:
        """An authority, and a certificate for the server's addresses; the folder with both."""
        folder, script = self.folder / name, ROOT / "deploy" / "certificates.sh"
        command = [script, folder, *self.net.addresses]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return folder

    @property
    def home(self) -> Path:
        return self.folder / "server"

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """One of our commands for the server, to its end."""
        return subprocess.run(
            [*self.net.server(), *DANDELION, *words, "--home", str(self.home)],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def key(self, name: str, register: bool = True) -> Path:
        """A node's private key, registered or not."""
        path = self.folder / f"{name}.key"
        if not path.exists():
            command = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", path]
            subprocess.run(command, check=True)
            if register:
                done = self.command("server", "register", f"{path}.pub")
                assert done.returncode == 0, done.stderr
        return path

    def join(self, name: str, *words: str, ca: Path | None = None, register: bool = True) -> None:
        """Start a node; its connection goes through a proxy of its own."""
        where, superlink = self.net.node(name)
        self.nodes[name] = self.start(
            where, "client", "join", superlink, "--home", str(self.folder / name),
            "--ca", str(ca or self.certificates / "ca.crt"),
            "--key", str(self.key(name, register)), *words, log=name,
        )  # fmt: skip

    def workers(self, name: str) -> list[int]:
        """A node's guard, if it runs."""
        return processes.of(self.folder / name, "client\0guard")

    def kill(self, name: str) -> None:
        """A node's power fails: all its processes are gone at once, the guard too."""
        node = self.nodes.pop(name)
        destroy([node.pid, *descendants(node.pid), *self.workers(name)])
        node.wait()

    def kill_server(self, program: str) -> None:
        """Kill what runs of one of Flower's programs at the server's side."""
        destroy(named(descendants(self.server.pid), program))

    def run(self, name: str, settings: dict[str, object]) -> "subprocess.Popen[bytes]":
        """Start a run over the wire."""
        pairs = [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]
        words = ["server", "run", "--home", str(self.home), "--name", name, *pairs]
        return self.start(self.net.server(), *words, log=name)

    def resume(self, name: str) -> "subprocess.Popen[bytes]":
        """Go on with a run."""
        words = ["server", "run", "--home", str(self.home), "--resume", str(self.runs / name)]
        return self.start(self.net.server(), *words, log=name)

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    def digest(self, name: str) -> str:
        """What the parameters were when a run was done."""
        return str(json.loads((self.runs / name / "summary.json").read_text())["digest"])

    def output_of(self, log: str) -> str:
        """What a command has printed."""
        return (self.folder / f"{log}.out").read_text(errors="replace")

    def end(self) -> None:
        """End what was started, kindly, and then what is left of it."""
        for process in self.commands:
            if process.poll() is None:
                process.terminate()
        for process in self.commands:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            end_session(process)
        self.net.close()
