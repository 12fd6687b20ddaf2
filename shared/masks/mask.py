"""A fixed sparse mask: the addresses that a run trains, as a text among its settings.

A mask is chosen once, before round 0: a share of the addresses with the largest squared gradients.
Sensitive parameters are few and stay the same while a model is tuned (Guo et al. 2024,
https://arxiv.org/abs/2406.02913). All replicas read it from the settings, so it costs no round.
"""

import base64
import binascii
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import log2, prod

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from shared.base.errors import ConfigError

AUTO = "auto"
PREFIX = "mask1:"  # format: fingerprint of the shapes, a colon, base64 of deflated bits
LEVEL = 6  # of compression
MOST_BYTES = 4 << 20  # of a text: it is a setting, which every site gets

Shapes = Mapping[str, tuple[int, ...]]  # of a model's parameters, by name, in the model's order


@dataclass(frozen=True)
class Mask:
    """Which addresses of each parameter are trained; a parameter without any is not there."""

    addresses: Mapping[str, Tensor]  # ascending, (n,) int64, in the parameter's flat numbering

    @property
    def size(self) -> int:
        """The number of addresses."""
        return sum(map(len, self.addresses.values()))

    @classmethod
    def of_largest(cls, scores: Mapping[str, Tensor], share: float) -> "Mask":
        """A share of all addresses, at least one: those with the largest scores.

        Args:
            scores: one for each address, by parameter, in the parameter's shape.
            share: of the addresses of all these parameters, above 0 and at most 1.
        """
        every = torch.cat([score.flatten() for score in scores.values()]).double().numpy()
        count = max(1, round(share * len(every)))
        chosen = np.zeros(len(every), bool)
        chosen[np.argpartition(every, len(every) - count)[len(every) - count :]] = True
        return cls(_split(chosen, {name: tuple(each.shape) for name, each in scores.items()}))

    def encode(self, shapes: Shapes) -> str:
        """The text that ``decode`` reads.

        Args:
            shapes: of all parameters of the model.
        """
        bits = np.zeros(sum(map(prod, shapes.values())), bool)
        start = 0
        for name, shape in shapes.items():
            if name in self.addresses:
                bits[start + self.addresses[name].numpy()] = True
            start += prod(shape)
        packed = zlib.compress(np.packbits(bits).tobytes(), LEVEL)
        return f"{PREFIX}{fingerprint(shapes)}:{base64.b64encode(packed).decode()}"

    @classmethod
    def decode(cls, text: str, shapes: Shapes) -> "Mask":
        """Read the setting ``mask`` for a model.

        Args:
            text: as ``encode`` makes it.
            shapes: of all parameters of the model.

        Raises:
            ConfigError: it is no such text, of another model, or without an address.
        """
        if text == AUTO:
            raise ConfigError(
                "mask = auto becomes addresses before the settings go to the sites: start with "
                "'dandelion run' or 'dandelion server run', or set mask to the text in the "
                "config.toml of a run of the same model"
            )
        name, _, numbers = text.removeprefix(PREFIX).partition(":")
        if not text.startswith(PREFIX) or not numbers:
            raise ConfigError(
                f"mask: {AUTO}, or a text that begins with {PREFIX!r} as dandelion computes it, "
                f"expected, got {text[:40]!r}"
            )
        if name != fingerprint(shapes):
            raise ConfigError(
                f"mask: one of this model's {sum(map(prod, shapes.values()))} parameters "
                f"({fingerprint(shapes)}) expected, got one of another model ({name[:16]}); set "
                f"mask = {AUTO}"
            )
        chosen = _bits(numbers, sum(map(prod, shapes.values())))
        if not chosen.any():
            raise ConfigError("mask: at least one address expected, got none")
        return cls(_split(chosen, shapes))


def check_size(share: float, count: int) -> None:
    """Refuse a mask whose text would be long, by the entropy of a bit for each address.

    Args:
        share: of the addresses.
        count: all of them.

    Raises:
        ConfigError: the text would have more than MOST_BYTES.
    """
    entropy = sum(-p * log2(p) for p in (share, 1 - share) if p > 0)
    size = count * entropy / 8 * 4 / 3  # base64
    if size > MOST_BYTES:
        raise ConfigError(
            f"scope mask: a share {share:g} of {count} numbers takes {size / 1e6:.1f} MB in the "
            f"settings, at most {MOST_BYTES / 1e6:.1f} MB expected: take a smaller share, or one "
            "of a part, such as mask:0.1:last:2"
        )


def fingerprint(shapes: Shapes) -> str:
    """16 hexadecimal digits that name the parameters of a model and their shapes."""
    text = repr([(name, tuple(each)) for name, each in shapes.items()])
    return xxhash.xxh3_64_hexdigest(text.encode())


def _bits(numbers: str, count: int) -> NDArray[np.bool_]:
    """A bit for each of ``count`` addresses; never more memory than these take."""
    size = -(-count // 8)
    try:
        reader = zlib.decompressobj()
        data = reader.decompress(base64.b64decode(numbers, validate=True), size + 1)
    except (binascii.Error, zlib.error) as error:
        raise ConfigError(f"mask: a text as dandelion computes it expected ({error})") from error
    if len(data) != size or not reader.eof:
        raise ConfigError(f"mask: the bits of {count} addresses expected, got another number")
    return np.unpackbits(np.frombuffer(data, np.uint8))[:count].astype(bool)


def _split(chosen: NDArray[np.bool_], shapes: Shapes) -> dict[str, Tensor]:
    """The addresses of each parameter that has one, of a bit for each address of all of them."""
    addresses, start = dict[str, Tensor](), 0
    for name, shape in shapes.items():
        own = np.flatnonzero(chosen[start : start + prod(shape)])
        start += prod(shape)
        if len(own):
            addresses[name] = torch.from_numpy(own)
    return addresses
