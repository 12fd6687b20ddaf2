"""Random bits that are a function of a secret key and a name: the same again, or nobody's guess.

SHAKE-256 (FIPS 202) of a label, the key and the name, in blocks. A sponge with its key in front is
a pseudorandom function (Bertoni et al. 2007, "Sponge functions"; KMAC of NIST SP 800-185 is one).
Everything is an integer: no floating-point number is drawn, so none can give a key away.
"""

from dataclasses import dataclass, field
from hashlib import shake_256

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = NAME_BYTES = 32
BLOCK_BYTES = 1 << 8  # of the stream that is computed at a time


@dataclass
class KeyStream:
    """Bits under a key (32 bytes) for one purpose and one name (32 bytes).

    Two streams that differ in purpose, key or name have nothing in common.

    Raises:
        ValueError: key or name are of another length.
    """

    key: bytes = field(repr=False)
    purpose: str
    name: bytes
    _block: int = field(default=0, init=False, repr=False)
    _bits: int = field(default=0, init=False, repr=False)  # those that are left, as one integer
    _left: int = field(default=0, init=False, repr=False)  # how many

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES or len(self.name) != NAME_BYTES:
            raise ValueError(f"{KEY_BYTES} bytes expected, got {len(self.key)}, {len(self.name)}")

    def bits(self, count: int) -> int:
        """The next ``count`` bits as an integer."""
        while self._left < count:
            self._bits |= int.from_bytes(self.take(BLOCK_BYTES), "little") << self._left
            self._left += 8 * BLOCK_BYTES
        value = self._bits & ((1 << count) - 1)
        self._bits >>= count
        self._left -= count
        return value

    def below(self, limit: int) -> int:
        """An integer from 0 to below ``limit``, all equally likely: others are drawn again."""
        width = (limit - 1).bit_length()
        while (value := self.bits(width)) >= limit:
            pass
        return value

    def words(self, count: int) -> NDArray[np.uint64]:
        """Words (count,) of 64 bits."""
        return np.frombuffer(self.take(8 * count), "<u8").astype(np.uint64)

    def take(self, count: int) -> bytes:
        """The next block of the stream, of any length."""
        number = self._block.to_bytes(8, "little")
        self._block += 1
        label = f"dandelion {self.purpose}".encode().ljust(64, b"\0")
        return shake_256(label + self.key + self.name + number).digest(count)


def sample_units(stream: KeyStream, count: int, rate_bits: int) -> NDArray[np.int64]:
    """Numbers of the units, of ``count``, that a Poisson batch of rate 2^-rate_bits has.

    Each is in it with exactly that probability, whatever the others do.
    """
    words = stream.words(count)
    return (
        np.flatnonzero(words >> np.uint64(64 - rate_bits) == 0) if rate_bits else np.arange(count)
    )
