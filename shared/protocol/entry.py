"""The ledger's entry of a round: the numbers from which every replica takes the same step."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import WireError

# entry: | magic u16 | slots u16 | round u32 | numbers u32 | learning rate f64 |
#        slots x (| slot u32 | numbers x f32 |) |
#        if dense also | guide f64 | length u32 | payload, or its SHA-256 if it was dropped |
#        | crc32 u32 of all before |                                               little-endian
# rewind: the same without slots; ``numbers`` is the round to go back to, the learning rate what
#        all rates are multiplied by from here on
HEADER = struct.Struct("<HHIId")
SLOT = struct.Struct("<I")
GUIDE = struct.Struct("<dI")
MAGIC, MAGIC_DENSE, MAGIC_DROPPED, MAGIC_REWIND = 0xDE01, 0xDE02, 0xDE03, 0xDE04
WITH_GUIDE = (MAGIC_DENSE, MAGIC_DROPPED)
DIGEST = 32  # bytes


@dataclass(frozen=True)
class SlotDifferences:
    """Loss differences along the directions of one slot, multiplied by the weight of its site."""

    slot: int  # of the keys: 0 if all sites share the directions, else one site's own
    differences: NDArray[np.float32]  # (K*q,) step by step


@dataclass(frozen=True)
class Entry:
    """The step of one round, complete except for the directions, which its keys name.

    The gradient is guide * dense + the estimate of the slots. ``dense`` is the decoded payload. An
    entry with a guide but without a payload uses that of the last entry that had one.

    A *rewind* takes no step: parameters and optimizer state become those of round ``back_to``
    again, and its learning rate multiplies the rates of all later rounds. A rewind to the round
    before it undoes nothing: it is a *pause*, a round without a step.
    """

    round: int  # 1-based, no gaps
    learning_rate: float
    slots: Sequence[SlotDifferences]  # in slot order, all of one length
    guide: float = 0.0  # factor of the dense gradient
    payload: bytes = b""  # a dense gradient as its codec encoded it, with the codec's name
    dropped: bytes = b""  # SHA-256 of a payload that was removed
    back_to: int | None = None  # of a rewind: an earlier round; 0 is the base model

    @property
    def follows(self) -> int:
        """The round at which a replica must be to take this step."""
        return self.round - 1 if self.back_to is None else self.back_to

    @property
    def undoes(self) -> bool:
        """Whether rounds are taken back."""
        return self.back_to is not None and self.back_to < self.round - 1

    def encode(self) -> bytes:
        """Return the bytes of the drawing above: 24 + slots * (4 + 4 * K * q), + 12 + payload."""
        numbers = self.back_to or (len(self.slots[0].differences) if self.slots else 0)
        magic = self._magic()
        parts = [HEADER.pack(magic, len(self.slots), self.round, numbers, self.learning_rate)]
        for slot in self.slots:
            parts += [SLOT.pack(slot.slot), slot.differences.astype("<f4").tobytes()]
        if magic in WITH_GUIDE:
            tail = self.dropped or self.payload
            parts += [GUIDE.pack(self.guide, len(tail)), tail]
        body = b"".join(parts)
        return body + SLOT.pack(crc32(body))

    def _magic(self) -> int:
        if self.back_to is not None:
            return MAGIC_REWIND
        return MAGIC_DROPPED if self.dropped else MAGIC_DENSE if self.guide else MAGIC

    def without_payload(self) -> "Entry":
        """Return the entry with its payload replaced by its SHA-256, by which it can be checked."""
        if not self.payload:
            return self
        return replace(self, payload=b"", dropped=sha256(self.payload).digest())

    @classmethod
    def decode(cls, data: bytes) -> "Entry":
        """Read what ``encode`` wrote.

        Raises:
            WireError: the bytes are truncated, too long, corrupt, or no entry.
        """
        if len(data) < HEADER.size + SLOT.size:
            raise WireError(
                f"entry of at least {HEADER.size + SLOT.size} bytes expected, got {len(data)}"
            )
        magic, slots, round_, numbers, learning_rate = HEADER.unpack_from(data)
        size = HEADER.size + slots * (SLOT.size + 4 * numbers)
        guide, tail = _decode_guide(data, magic, size)
        size += SLOT.size + (GUIDE.size + len(tail) if magic in WITH_GUIDE else 0)
        if magic not in (MAGIC, *WITH_GUIDE, MAGIC_REWIND) or len(data) != size:
            raise WireError(
                f"entry {MAGIC:#x} of {size} bytes expected, got {magic:#x} of {len(data)}"
            )
        if SLOT.unpack_from(data, size - SLOT.size)[0] != crc32(data[: -SLOT.size]):
            raise WireError(f"entry of round {round_} is corrupt: its checksum does not fit")
        if magic == MAGIC_REWIND:
            return _decode_rewind(round_, learning_rate, slots, numbers)
        read = tuple(_decode_slots(data, slots, numbers))
        if magic == MAGIC_DROPPED:
            return cls(round_, learning_rate, read, guide, dropped=tail)
        return cls(round_, learning_rate, read, guide, tail)


def _decode_rewind(round_: int, scale: float, slots: int, back_to: int) -> Entry:
    if slots or back_to >= round_:
        raise WireError(f"round {round_}: a rewind to an earlier round expected, got {back_to}")
    return Entry(round_, scale, (), back_to=back_to)


def is_dense(data: bytes) -> bool:
    """Tell whether an encoded entry carries a gradient of one number per parameter."""
    return data[:2] == MAGIC_DENSE.to_bytes(2, "little") and Entry.decode(data).payload != b""


def _decode_slots(data: bytes, slots: int, numbers: int) -> list[SlotDifferences]:
    at, read = HEADER.size, []
    for _ in range(slots):
        (slot,) = SLOT.unpack_from(data, at)
        values = np.frombuffer(data, "<f4", numbers, at + SLOT.size).astype(np.float32)
        read.append(SlotDifferences(slot, values))
        at += SLOT.size + 4 * numbers
    return read


def _decode_guide(data: bytes, magic: int, at: int) -> tuple[float, bytes]:
    """Return an entry's guide and its payload or the payload's digest, if it has them.

    Raises:
        WireError: the bytes end too early.
    """
    if magic not in WITH_GUIDE:
        return 0.0, b""
    if len(data) < at + GUIDE.size:
        raise WireError(f"entry of at least {at + GUIDE.size} bytes expected, got {len(data)}")
    guide, length = GUIDE.unpack_from(data, at)
    start = at + GUIDE.size
    if len(data) < start + length or (magic == MAGIC_DROPPED and length != DIGEST):
        raise WireError(f"entry with {length} bytes more expected, got {len(data) - start}")
    return guide, data[start : start + length]
