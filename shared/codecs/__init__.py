"""Ways to send a dense gradient as bytes; both sides use what the bytes say, not what was meant."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from shared.base.flat import Layout
from shared.base.options import arguments_of
from shared.base.registry import Registry
from shared.config.schema import Config


class Codec(Protocol):
    """Turns vectors of one layout into payloads and back, with the same bits on every machine."""

    @property
    def payload_bytes(self) -> int:
        """Length of every payload, header included: a function of the layout alone."""

    def encode(self, vector: Tensor) -> bytes:
        """Encode ``vector`` (size,); numbers that are not finite pass, for ``decode`` to refuse."""

    def decode(self, payload: bytes) -> Tensor:
        """Return a float32 vector (size,) on the CPU, padding zero.

        Raises:
            WireError: the payload is truncated, oversized, corrupt, of another codec or another
                model, or holds a number that is not finite.
        """


CODECS: Registry[Callable[..., Codec]] = Registry("codec", "shared.codecs")


def codec_of(config: Config, layout: Layout) -> Codec:
    """The codec that the gradients of a run travel in."""
    codec = CODECS[config.bp.codec]
    return codec(layout, **arguments_of(codec, config.options))
