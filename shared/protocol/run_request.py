"""A run request: an operator's signature that this run, with these settings and this code, may be.

Whoever reaches a server's control port can start a run. A site that lists its operators' public
keys answers only a run whose request one of them has signed (Ed25519, RFC 8032).

    run-request = public key, 64 hexadecimal digits . claim, base64 of JSON . signature, 128 digits
    claim: run (16 bytes), config (SHA-256), code (16 bytes), signed and expires (Unix seconds)
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256

from shared.base.errors import WireError

SETTING = "run-request"
PURPOSE = b"dandelion run request 1\0"  # signed before the claim: a key's other uses are not ours
KEY_BYTES = 32


@dataclass(frozen=True)
class Claim:
    """What an operator signs."""

    run: str  # 16 bytes that name the run on the wire, hexadecimal
    config: str  # ``config_digest``, hexadecimal
    code: str  # digest of the source files, hexadecimal
    signed: int  # Unix seconds, by the operator's clock
    expires: int


@dataclass(frozen=True)
class RunRequest:
    """A claim with its signature, as it travels; nothing says yet that the two fit."""

    key: bytes  # 32, public
    claim: Claim
    text: bytes  # the claim's bytes, which were signed
    signature: bytes  # 64

    @classmethod
    def decode(cls, setting: str) -> "RunRequest":
        """Read the setting ``run-request``.

        Raises:
            WireError: it is damaged.
        """
        try:
            key, text, signature = setting.split(".")
            body = urlsafe_b64decode(text.encode())
            read = json.loads(body)
            claim = Claim(*(each.type(read[each.name]) for each in fields(Claim)))  # type: ignore[operator]
            return cls(bytes.fromhex(key), claim, body, bytes.fromhex(signature))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise WireError(
                f"{SETTING}: key.claim.signature expected, got {setting[:80]!r}"
            ) from error

    def is_signed(self) -> bool:
        """Whether the signature is that of the key over the claim."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            public = Ed25519PublicKey.from_public_bytes(self.key)
            public.verify(self.signature, PURPOSE + self.text)
        except (InvalidSignature, ValueError):
            return False
        return True


def sign(claim: Claim, private_key: bytes) -> str:
    """The setting ``run-request`` of a claim, signed.

    Args:
        claim: what is signed.
        private_key: 32 bytes, the seed of an Ed25519 key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key, text = (
        Ed25519PrivateKey.from_private_bytes(private_key),
        json.dumps(asdict(claim)).encode(),
    )
    public = key.public_key().public_bytes_raw().hex()
    signature = key.sign(PURPOSE + text).hex()
    return f"{public}.{urlsafe_b64encode(text).decode()}.{signature}"


def config_digest(run_config: Mapping[str, object]) -> str:
    """SHA-256 of all settings of a run but its request, hexadecimal.

    Args:
        run_config: by flat key, defaults included: ``Config.to_run_config()``.
    """
    signed = {key: value for key, value in run_config.items() if key != SETTING}
    return sha256(json.dumps(signed, sort_keys=True).encode()).hexdigest()
