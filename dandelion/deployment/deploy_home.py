"""The folder of a server or a node, and the commands that run Flower's programs in it."""

import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from dandelion.deployment.supervisor import Program
from dandelion.engines.flower_simulation import (
    EngineError,
    flower_environment,
    program_path,
    write_connection,
)

CONNECTION = "federation"
TASK_POLL_S = "0.05"  # Flower's default is 1
PATCHES = Path(__file__).with_name("flower_patches.py")
CHECK = "--check"  # has the patches print what they miss
LOG = logging.getLogger("dandelion")
CLIENT_APP_MODULES = "flwr.supernode.cli,flwr.cli.install,flwr.clientapp,grpc"
SERVER_APP_MODULES = "flwr.superlink.cli,flwr.serverapp"  # imported before an app runs
NODE_VARIABLE = "DANDELION_NODE"  # of the systemd unit; it names data, which are the guard's
ANY_HOST = ("", "0.0.0.0", "::")  # these listen on all addresses of a machine
SERVER_FILES = ("ca.crt", "server.crt", "server.key")  # written by deploy/certificates.sh


@dataclass(frozen=True)
class Home:
    """The folder of a server or a node; only its owner can read it."""

    folder: Path

    @classmethod
    def at(cls, folder: Path) -> "Home":
        """Open the folder; make it if it is missing."""
        home = cls(folder.resolve())
        home.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.empty.mkdir(exist_ok=True)
        (home.folder / "flwr").mkdir(exist_ok=True)
        return home

    @property
    def empty(self) -> Path:
        """The working folder of Flower's programs: empty, so that no code in it is imported."""
        return self.folder / "empty"

    @property
    def runs(self) -> Path:
        """The folder of run folders."""
        return self.folder / "runs"

    @property
    def apps(self) -> Path:
        """Code that the SuperLink sent; Flower never replaces it, not even an incomplete copy."""
        return self.folder / "flwr" / "apps"

    @property
    def pid(self) -> Path:
        """The file with the number of the process that supervises the servers."""
        return self.folder / "up.pid"

    @property
    def joined(self) -> Path:
        """The file that names the servers which have let this node in, a line each."""
        return self.folder / "joined"

    def log(self, name: str) -> Path:
        """The log of a program."""
        return self.folder / f"{name}.log"

    def secret(self) -> Path:
        """The secret file of SuperExec and SuperLink; made if it is missing."""
        path = self.folder / "superexec.secret"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_hex(32))
        return path

    def environment(self, loaded: str = "") -> dict[str, str]:
        """Variables under which Flower installs nothing, contacts no other host and writes here.

        Args:
            loaded: modules that are imported before an app runs, separated by commas.
        """
        own = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": TASK_POLL_S, "DANDELION_PRELOAD": loaded}
        return {**flower_environment(self.folder), **own}

    def connect(self, address: str, root: Path | None) -> None:
        """Point ``flwr`` commands to the SuperLink at ``address``; use TLS if ``root`` is given."""
        write_connection(self.folder, CONNECTION, address, root)


def default_home(side: str) -> Path:
    """``$DANDELION_HOME``, or a folder in the user's state folder (XDG)."""
    if folder := os.environ.get("DANDELION_HOME", ""):
        return Path(folder)
    state = os.environ.get("XDG_STATE_HOME", "") or Path.home() / ".local" / "state"
    return Path(state, "dandelion", side)


def program_command(name: str, stock: bool = False) -> list[str]:
    """The command of one of Flower's programs: with our patches, or ``stock``, without.

    On a release of Flower that the patches do not fit it is Flower's own program, with a warning.
    """
    if not stock and (misfit := find_misfit()):
        LOG.warning("%s; %s runs as Flower's own program, with all its waits", misfit, name)
        stock = True
    return [program_path(name)] if stock else [sys.executable, "-P", str(PATCHES), name]


def find_misfit() -> str:
    """Why our patches do not fit the installed release of Flower; empty if they do."""
    installed = f"Flower {version('flwr')} is not the one that our patches are for"
    try:
        missing = missing_names()
    except ImportError as error:
        return f"{installed}: {error}"
    return f"{installed}: it lacks {missing}" if missing else ""


@cache
def missing_names() -> str:
    """The names that our patches replace and the installed release of Flower lacks, with commas.

    A process of its own looks for them: Flower's programs take 100 MB, which the process that
    supervises them would hold as long as it runs.

    Raises:
        ImportError: a module of Flower is not there.
    """
    command = [sys.executable, "-P", str(PATCHES), CHECK]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImportError((done.stderr.strip().splitlines() or ["it cannot be imported"])[-1])
    return done.stdout.strip()


def programs(home: Home, commands: Mapping[str, list[str]], loaded: str) -> dict[str, Program]:
    """Programs that run commands in a home; a SuperExec gets a folder for temporary files."""
    environment = home.environment(loaded)
    environment.pop(NODE_VARIABLE, None)
    return {
        name: Program(
            name, command, home.empty, environment, home.log(name), scratch=name == "superexec"
        )
        for name, command in commands.items()
    }


def superlink_command(home: Home, host: str, port: int, certificates: Path | None) -> list[str]:
    """The command of a SuperLink with its state in a file, so that runs outlive it.

    Raises:
        EngineError: a certificate is missing.
    """
    command = [program_path("flower-superlink"), "--host", host, "--port", str(port)]
    command += ["--database", str(home.folder / "superlink.db"), "--isolation", "process"]
    command += ["--superexec-auth-secret-file", str(home.secret())]
    command += ["--disable-runtime-dependency-installation"]
    if certificates is None:
        return [*command, "--insecure"]
    ca, crt, key = (_file(certificates / name) for name in SERVER_FILES)
    command += ["--ssl-ca-certfile", ca, "--ssl-certfile", crt, "--ssl-keyfile", key]
    return [*command, "--enable-supernode-auth"]


def local_address(host: str, port: int) -> str:
    """The address by which this machine's programs reach a SuperLink that listens on ``host``."""
    return f"{'127.0.0.1' if host in ANY_HOST else host}:{port}"


def superexec_command(
    home: Home, address: str, root: Path | None, stock: bool = False
) -> list[str]:
    """The command of a SuperExec, which starts the apps of a SuperLink or SuperNode."""
    command = [*program_command("flower-superexec", stock), "--runtime-api-address", address]
    return [*command, "--superexec-auth-secret-file", str(home.secret()), *_trust(root)]


def supernode_command(
    home: Home,
    superlink: str,
    node_config: str,
    port: int,
    trust: tuple[Path | None, Path | None],
    stock: bool = False,
) -> list[str]:
    """The command of a SuperNode whose ClientApps a SuperExec starts.

    Args:
        home: the node's folder.
        superlink: HOST:PORT.
        node_config: in Flower's ``key=value`` syntax.
        port: local, for the SuperExec.
        trust: the CA's certificate and the node's private key.
        stock: without our patches.

    Raises:
        EngineError: one of these files is missing.
    """
    root, key = trust
    command = [
        *program_command("flower-supernode", stock),
        "--superlink",
        superlink,
        "--port",
        str(port),
    ]
    command += ["--isolation", "process", "--superexec-auth-secret-file", str(home.secret())]
    command += ["--node-config", node_config, *_trust(root)]
    return [*command, "--auth-supernode-private-key", _file(key)] if key else command


def _trust(root: Path | None) -> list[str]:
    return ["--insecure"] if root is None else ["--root-certificates", _file(root)]


def _file(path: Path) -> str:
    if not path.is_file():
        raise EngineError(f"{path}: no such file; deploy/certificates.sh makes certificates")
    return str(path.resolve())
