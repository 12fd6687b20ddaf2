"""One round's record: the numbers from which every replica takes the same step."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from shared.errors import WireError

# entry: | magic u16 | groups u16 | round u32 | numbers u32 | learning rate f64 |
#        groups x (| slot u32 | numbers x f32 |) | crc32 u32 of all before |       little-endian
HEADER = struct.Struct("<HHIId")
SLOT = struct.Struct("<I")
MAGIC = 0xDE01


@dataclass(frozen=True)
class Group:
    """Loss differences along the directions of one slot; a site's weight is multiplied in."""

    slot: int  # of the keys: 0 for directions that all sites share, else one site's own
    differences: NDArray[np.float32]  # (K*q,) step by step


@dataclass(frozen=True)
class Entry:
    """The step of one round, complete but for the directions, which its keys name."""

    round: int  # 1-based, no gaps
    learning_rate: float
    groups: Sequence[Group]  # in slot order, all of one length

    def encode(self) -> bytes:
        """Bytes of the drawing above: 24 + groups * (4 + 4 * K * q)."""
        numbers = len(self.groups[0].differences) if self.groups else 0
        parts = [HEADER.pack(MAGIC, len(self.groups), self.round, numbers, self.learning_rate)]
        for group in self.groups:
            parts += [SLOT.pack(group.slot), group.differences.astype("<f4").tobytes()]
        body = b"".join(parts)
        return body + SLOT.pack(crc32(body))

    @classmethod
    def decode(cls, data: bytes) -> "Entry":
        """Read what ``encode`` wrote.

        Raises:
            WireError: truncated, overlong, corrupt, or not an entry at all.
        """
        if len(data) < HEADER.size + SLOT.size:
            raise WireError(
                f"entry of at least {HEADER.size + SLOT.size} bytes expected, got {len(data)}"
            )
        magic, groups, round_, numbers, learning_rate = HEADER.unpack_from(data)
        size = HEADER.size + groups * (SLOT.size + 4 * numbers) + SLOT.size
        if magic != MAGIC or len(data) != size:
            raise WireError(
                f"entry {MAGIC:#x} of {size} bytes expected, got {magic:#x} of {len(data)}"
            )
        if SLOT.unpack_from(data, size - SLOT.size)[0] != crc32(data[: -SLOT.size]):
            raise WireError(f"entry of round {round_} is corrupt: its checksum does not fit")
        at, read = HEADER.size, []
        for _ in range(groups):
            (slot,) = SLOT.unpack_from(data, at)
            values = np.frombuffer(data, "<f4", numbers, at + SLOT.size).astype(np.float32)
            read.append(Group(slot, values))
            at += SLOT.size + 4 * numbers
        return cls(round_, learning_rate, tuple(read))
