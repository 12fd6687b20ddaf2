"""Hashes that bind a ledger's rows, so that a changed bit is found before anything is applied."""

from collections.abc import Iterable, Sequence
from hashlib import sha256

from shared.base.errors import WireError
from shared.protocol.entry import Entry, is_dense


def chain_hash(before: bytes, payload: bytes, contributions: Sequence[Sequence[object]]) -> bytes:
    """The chain of a round: over that of the round before, its entry, and what it was made from.

    A dense gradient is bound by its digest, so that it can be dropped without breaking the chain.
    """
    found = sha256(before + lasting_payload(payload))
    for row in contributions:
        found.update(repr(tuple(row)).encode())
    return found.digest()


def lasting_payload(payload: bytes) -> bytes:
    """An encoded entry as it is for ever: a dense gradient's digest in the gradient's place."""
    try:
        return Entry.decode(payload).without_payload().encode() if is_dense(payload) else payload
    except WireError:
        return payload  # damaged: it fits no chain as it is


def seal(head: Iterable[tuple[str, bytes]]) -> bytes:
    """What binds the rows of the table ``head``; the first chain starts from it."""
    found = sha256()
    for key, value in head:
        found.update(f"{key} {len(value)} ".encode() + value)
    return found.digest()
