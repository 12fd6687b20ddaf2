"""Which replies may enter a round: everything a site sends is checked before it is believed."""

import math
from dataclasses import dataclass

import numpy as np
from flwr.app import Message

from shared.codecs import Codec
from shared.envelope import unpack
from shared.errors import DandelionError, WireError
from shared.wire import OUTCOME, Behind, Measured, decode_reply

LARGEST = 1e9  # no loss is larger; sums and squares of numbers up to it stay finite


class RefusedError(DandelionError):
    """A reply that is not used; ``reason`` is one of a few words that are counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Expected:
    """What a valid reply to a round's request looks like."""

    round: int
    numbers: int  # K * q
    digest: bytes | None  # 16, of the parameters that the round is measured at; None: any
    codec: Codec | None = None  # of the gradient that the round asks for
    classes: int | None = None  # of the outcome that the round asks for; None: it asks for none


def read_reply(message: Message, expected: Expected) -> Measured | Behind:
    """The reply in a message, checked.

    Raises:
        RefusedError: an error, undecodable, oversized, of another round, of the wrong length, not
            finite or too large, measured at other parameters, or measured on nothing.
    """
    if message.has_error():
        raise RefusedError("error", message.error.reason or f"code {message.error.code}")
    try:
        payload, snapshot = unpack(message.content)
        limit = 64 + 4 * expected.numbers
        limit += expected.codec.payload_bytes if expected.codec else 0
        limit += OUTCOME.size + 4 * expected.classes**2 if expected.classes is not None else 0
        if len(payload) > limit or snapshot is not None:
            raise RefusedError("oversized", f"at most {limit} bytes expected, got {len(payload)}")
        reply = decode_reply(payload)
    except WireError as error:
        raise RefusedError("undecodable", str(error)) from error
    if isinstance(reply, Measured):
        _check(reply, expected)
        _check_gradient(reply, expected)
        _check_outcome(reply, expected)
    return reply


def _check(reply: Measured, expected: Expected) -> None:
    if reply.round != expected.round:
        raise RefusedError("wrong round", f"round {expected.round} expected, got {reply.round}")
    if len(reply.differences) != expected.numbers:
        raise RefusedError(
            "wrong length", f"{expected.numbers} numbers expected, got {len(reply.differences)}"
        )
    peak = float(np.abs(reply.differences).max(initial=0.0))  # not finite where one number is not
    if not (math.isfinite(peak) and math.isfinite(reply.loss)):
        raise RefusedError("not finite", f"{reply.differences}, loss {reply.loss}")
    if (most := max(peak, abs(reply.loss))) > LARGEST:
        raise RefusedError("too large", f"up to {LARGEST:g} expected, got {most}")
    if expected.digest is not None and reply.digest != expected.digest:
        raise RefusedError(
            "wrong digest", f"{expected.digest.hex()} expected, got {reply.digest.hex()}"
        )
    if reply.examples < 1 or not 0 <= reply.seconds < math.inf:
        raise RefusedError("no examples", f"{reply.examples} examples in {reply.seconds} s")


def _check_outcome(reply: Measured, expected: Expected) -> None:
    outcome = reply.outcome
    if (outcome is None) != (expected.classes is None):
        wanted = "no outcome" if expected.classes is None else "an outcome"
        raise RefusedError("wrong kind", f"{wanted} expected, got {outcome}")
    if outcome is None:
        return
    told = int(outcome.confusion.sum()) if outcome.classes else outcome.examples
    whole = 0 <= outcome.total <= LARGEST * outcome.examples and outcome.examples == told > 0
    if outcome.classes != expected.classes or not whole:
        raise RefusedError("bad outcome", f"of {expected.classes} classes expected, got {outcome}")


def _check_gradient(reply: Measured, expected: Expected) -> None:
    if bool(reply.gradient) != (expected.codec is not None):
        wanted = "no gradient" if expected.codec is None else "a gradient"
        raise RefusedError("wrong kind", f"{wanted} expected, got {len(reply.gradient)} bytes")
    if expected.codec is None:
        return
    try:
        expected.codec.decode(reply.gradient)
    except WireError as error:
        raise RefusedError("bad gradient", str(error)) from error
