"""Where a server or a node keeps its files, and how Flower's programs are started from there."""

import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dandelion.deployment.supervisor import Program
from dandelion.engines.flower_simulation import EngineError, flower_environment

CONNECTION = "federation"
TASK_POLL_S = "0.05"  # Flower's own is a second
PATCHES = Path(__file__).with_name("flower_patches.py")
CLIENT_APP = "flwr.supernode.cli,flwr.cli.install,flwr.clientapp,grpc"  # imported before it runs
SERVER_APP = "flwr.superlink.cli,flwr.serverapp"
EVERYWHERE = ("", "0.0.0.0", "::")  # addresses that stand for all of a machine's
SERVER_FILES = ("ca.crt", "server.crt", "server.key")  # as deploy/certificates.sh writes them

StockOption = Annotated[
    bool, typer.Option("--stock", help="Flower's programs as they are, with all their waits.")
]


@dataclass(frozen=True)
class Home:
    """One folder, for its owner alone."""

    folder: Path

    @classmethod
    def at(cls, folder: Path) -> "Home":
        """Make the folder where it is missing."""
        home = cls(folder.resolve())
        home.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.empty.mkdir(exist_ok=True)
        (home.folder / "flwr").mkdir(exist_ok=True)
        return home

    @property
    def empty(self) -> Path:
        """The working folder of Flower's programs: one that holds no code to be run by mistake."""
        return self.folder / "empty"

    @property
    def runs(self) -> Path:
        """Run folders."""
        return self.folder / "runs"

    @property
    def apps(self) -> Path:
        """Code that the SuperLink sent; Flower never replaces it, even where a copy was cut off."""
        return self.folder / "flwr" / "apps"

    @property
    def pid(self) -> Path:
        """The number of the process that keeps the servers up."""
        return self.folder / "up.pid"

    def log(self, name: str) -> Path:
        """What a program says."""
        return self.folder / f"{name}.log"

    def secret(self) -> Path:
        """The file that a SuperExec shares with its SuperLink; made where it is missing."""
        path = self.folder / "superexec.secret"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_hex(32))
        return path

    def environment(self, loaded: str = "") -> dict[str, str]:
        """Variables under which Flower installs nothing, calls nobody and writes here.

        ``loaded``: modules that Flower's apps find imported.
        """
        own = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": TASK_POLL_S, "DANDELION_PRELOAD": loaded}
        return {**flower_environment(self.folder), **own}

    def connect(self, address: str, root: Path | None) -> None:
        """Have ``flwr`` commands reach the SuperLink at ``address``, by TLS where there is a CA."""
        trust = "insecure = true" if root is None else f'root-certificates = "{root}"'
        (self.folder / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "{address}"\n{trust}\n'
        )


def default_home(side: str) -> Path:
    """``$DANDELION_HOME``, or a folder among the user's state."""
    if given := os.environ.get("DANDELION_HOME", ""):
        return Path(given)
    state = os.environ.get("XDG_STATE_HOME", "") or Path.home() / ".local" / "state"
    return Path(state, "dandelion", side)


def program(name: str) -> str:
    """One of Flower's programs, of the installation that runs us."""
    return str(Path(sys.executable).parent / name)


def patched_program(name: str, stock: bool = False) -> list[str]:
    """One of Flower's programs without most of its waits, or as it is."""
    return [program(name)] if stock else [sys.executable, "-P", str(PATCHES), name]


def programs(home: Home, commands: Mapping[str, list[str]], loaded: str) -> dict[str, Program]:
    """Commands that run in a home; apps find ``loaded`` imported, a SuperExec leaves no file."""
    environment = home.environment(loaded)
    return {
        name: Program(
            name, command, home.empty, environment, home.log(name), scratch=name == "superexec"
        )
        for name, command in commands.items()
    }


def superlink_command(home: Home, host: str, port: int, certificates: Path | None) -> list[str]:
    """A SuperLink whose runs outlive it: state in a file, ServerApps in processes of others."""
    command = [program("flower-superlink"), "--host", host, "--port", str(port)]
    command += ["--database", str(home.folder / "superlink.db"), "--isolation", "process"]
    command += ["--superexec-auth-secret-file", str(home.secret())]
    command += ["--disable-runtime-dependency-installation"]
    if certificates is None:
        return [*command, "--insecure"]
    ca, crt, key = (_file(certificates / name) for name in SERVER_FILES)
    command += ["--ssl-ca-certfile", ca, "--ssl-certfile", crt, "--ssl-keyfile", key]
    return [*command, "--enable-supernode-auth"]


def near(host: str, port: int) -> str:
    """Where this machine's own programs find a SuperLink that listens on an address."""
    return f"{'127.0.0.1' if host in EVERYWHERE else host}:{port}"


def superexec_command(
    home: Home, address: str, root: Path | None, stock: bool = False
) -> list[str]:
    """What starts apps, beside a SuperLink or SuperNode and not below it."""
    command = [*patched_program("flower-superexec", stock), "--runtime-api-address", address]
    return [*command, "--superexec-auth-secret-file", str(home.secret()), *_trust(root)]


def supernode_command(
    home: Home,
    superlink: str,
    node_config: str,
    port: int,
    trust: tuple[Path | None, Path | None],
    stock: bool = False,
) -> list[str]:
    """A SuperNode that leaves its ClientApps to a SuperExec beside it; ``trust``: CA, own key."""
    root, key = trust
    command = [
        *patched_program("flower-supernode", stock),
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
