"""Shares in boxes that one member alone can open: X25519, HKDF-SHA-256, ChaCha20-Poly1305.

The key of a box follows from the key that sender and member share (RFC 7748), the run, both slots
and the sender's name for the request. A request that differs has another name, so that no key is
used twice and the nonce can be zero. What the box is for is authenticated with it (RFC 8439).
"""

import struct
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.base.errors import ConfigError, WireError
from shared.privacy.keystream import KeyStream
from shared.sealed.field import ELEMENT_BYTES, PRIME, Elements

NONCE, TAG_BYTES = bytes(12), 16
PURPOSE = struct.Struct("<16sIIII16s16sII32s")


@dataclass(frozen=True)
class BoxPurpose:
    """All that a box is for; a box that is opened for anything else does not open."""

    run: bytes  # 16
    round: int
    attempt: int
    needed: int  # t + 1, so that members agree on how many sums open a vector
    numbers: int  # of the share
    digest: bytes  # 16, of the parameters that were measured at
    roster: bytes  # 16, of the sender's roster
    sender: int  # slot
    member: int  # slot
    request: bytes  # 32, the sender's name for the request

    def encode(self) -> bytes:
        """The bytes that are authenticated."""
        return PURPOSE.pack(
            self.run, self.round, self.attempt, self.needed, self.numbers, self.digest,
            self.roster, self.sender, self.member, self.request,
        )  # fmt: skip


def private_key(secret: bytes, name: bytes) -> X25519PrivateKey:
    """The key of a site of this name (32 bytes), a function of a secret of 32 bytes."""
    return X25519PrivateKey.from_private_bytes(KeyStream(secret, "box key", name).take(32))


def public_bytes(key: X25519PrivateKey) -> bytes:
    """The 32 bytes of a public key that others have in their rosters."""
    return key.public_key().public_bytes_raw()


def seal_box(key: X25519PrivateKey, to: bytes, purpose: BoxPurpose, share: Elements) -> bytes:
    """Seal a share (q,) for the member with public key ``to``: 8 · q + 16 bytes.

    Raises:
        ConfigError: the public key is none.
    """
    text = share.astype("<u8").tobytes()
    return _cipher(key, to, purpose).encrypt(NONCE, text, purpose.encode())


def open_box(key: X25519PrivateKey, sender: bytes, purpose: BoxPurpose, box: bytes) -> Elements:
    """Open a box from the site with public key ``sender``: the share (q,).

    Raises:
        WireError: it is for another purpose or member, or damaged, or its numbers are no elements.
        ConfigError: the public key is none.
    """
    try:
        text = _cipher(key, sender, purpose).decrypt(NONCE, box, purpose.encode())
    except InvalidTag as error:
        raise WireError(f"box of slot {purpose.sender}: it does not open here") from error
    if len(text) != ELEMENT_BYTES * purpose.numbers:
        raise WireError(f"box of slot {purpose.sender}: {purpose.numbers} numbers expected")
    share = np.frombuffer(text, "<u8").astype(np.uint64)
    if (share >= np.uint64(PRIME)).any():
        raise WireError(f"box of slot {purpose.sender}: numbers below 2^61 - 1 expected")
    return share


def _cipher(key: X25519PrivateKey, peer: bytes, purpose: BoxPurpose) -> ChaCha20Poly1305:
    try:
        common = key.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError as error:
        raise ConfigError(f"roster: {peer.hex()} is no X25519 public key") from error
    about = b"dandelion box" + struct.pack("<16sII", purpose.run, purpose.sender, purpose.member)
    derived = HKDF(SHA256(), 32, salt=purpose.request, info=about).derive(common)
    return ChaCha20Poly1305(derived)
