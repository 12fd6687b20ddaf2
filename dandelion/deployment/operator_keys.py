"""An operator's key, and the runs that it signs: sites may answer no others."""

import os
import secrets
import stat
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dandelion.deployment.deploy_home import default_home
from shared.base.errors import ConfigError
from shared.config.schema import Config
from shared.problem.source import source_digest
from shared.protocol.run_request import KEY_BYTES, Claim, config_digest, sign

KEY_FILE = "operator.key"  # in a server's home: 32 bytes, hexadecimal
HOUR_S = 3600
LONGEST_H = 876_600  # a century
FileOption = Annotated[
    Path | None, typer.Option("--key", help="The file of the key; by default in the home.")
]
HomeOption = Annotated[Path | None, typer.Option("--home", help="Folder of all files.")]
keys_app = typer.Typer(no_args_is_help=True, help="The key that signs runs.")
console = Console()


@keys_app.command()
def new(key: FileOption = None, folder: HomeOption = None) -> None:
    """Make an operator's key, which only its owner can read, and print its public half."""
    _show(make_key(_file_of(key, folder)))


@keys_app.command()
def show(key: FileOption = None, folder: HomeOption = None) -> None:
    """Print the public half, for the key operators of a node's config."""
    _show(load_key(_file_of(key, folder)))


def make_key(file: Path) -> bytes:
    """Make a private key of 32 bytes in a file of mode 0600; return it.

    Raises:
        ConfigError: there is a file already.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    private = secrets.token_bytes(KEY_BYTES)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"{file}: a key is there already, and sites may list it; remove it first, or give "
            "another --key"
        ) from None
    with os.fdopen(descriptor, "w") as out:
        out.write(f"{private.hex()}\n")
        out.flush()
        os.fsync(out.fileno())
    return private


def load_key(file: Path) -> bytes:
    """Read a private key of 32 bytes.

    Raises:
        ConfigError: there is none, others can read it, or it is damaged.
    """
    if not file.is_file():
        raise ConfigError(f"{file}: no key here; make one with 'dandelion server keys new'")
    if (mode := stat.S_IMODE(file.stat().st_mode)) & 0o077:
        raise ConfigError(
            f"{file}: mode 0600 expected, got {mode:04o}: others may have read it; make another"
        )
    try:
        private = bytes.fromhex(file.read_text().strip())
    except ValueError:
        private = b""
    if len(private) != KEY_BYTES:
        raise ConfigError(f"{file}: {2 * KEY_BYTES} hexadecimal digits expected")
    return private


def public_half(private: bytes) -> str:
    """The public key of a private one, 64 hexadecimal digits."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def sign_run(config: Config, private: bytes, run: bytes, valid_h: float) -> str:
    """The setting ``run-request`` of a run, signed now.

    Args:
        config: of the run, as it is sent: with its folder, and with the defaults of all settings.
        private: 32 bytes, the operator's key.
        run: 16 bytes that name the run on the wire.
        valid_h: hours after which sites refuse it.

    Raises:
        ConfigError: ``valid_h`` is negative, more than a century, or no number.
    """
    if not 0 <= valid_h <= LONGEST_H:
        raise ConfigError(f"--valid-hours: 0 to {LONGEST_H:,} expected, got {valid_h:g}")
    now, code = int(time.time()), source_digest(config.model.app, config.run.app_dir)
    digest = config_digest(config.to_run_config())
    return sign(Claim(run.hex(), digest, code.hex(), now, now + int(valid_h * HOUR_S)), private)


def _file_of(key: Path | None, folder: Path | None) -> Path:
    return key or (folder or default_home("server")).resolve() / KEY_FILE


def _show(private: bytes) -> None:
    console.print(public_half(private), soft_wrap=True, highlight=False, markup=False)
