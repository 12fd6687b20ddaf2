"""Messages between server and sites, byte for byte; ``flower_records`` wraps them for Flower."""

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import WireError
from shared.base.metrics import EvalSums
from shared.protocol.frames import LENGTH, close_frame, magic_of, open_frame
from shared.protocol.outcomes import (
    decode_outcome,
    decode_sums,
    encode_outcome,
    outcome_bytes,
    sums_bytes,
)
from shared.protocol.sealed_messages import MAGIC_SEALED, Sealed, decode_sealed, encode_sealed

# request:  | magic u16 | flags u16 | round u32 | entries u32 | learning rate f64 | digest 16 |
#           run 16 | code 16 | if flagged: attempt u32 | entries x (| length u32 | bytes |) |
#           crc32 u32
# measured: | magic u16 | flags u16 | round u32 | numbers u32 | examples u32 | loss f32 |
#           seconds f32 | digest 16 | numbers x f32 | if flagged: before f32 | if flagged: after f32
#           | if flagged: outcome | if flagged: sums (outcomes.py) | if flagged: gradient, encoded
#           | crc32 u32
#           a loss that is NaN was not sent; seconds are 0 where privacy is on
# behind:   | magic u16 | reason u16 | round u32 | crc32 u32                        little-endian
REQUEST = struct.Struct("<HHIId16s16s16s")
MEASURED = struct.Struct("<HHIIIff16s")
BEHIND = struct.Struct("<HHI")
LOSS, ATTEMPT = struct.Struct("<f"), struct.Struct("<I")
MAGIC_REQUEST, MAGIC_MEASURED, MAGIC_BEHIND = 0xDE11, 0xDE12, 0xDE13
RESET = 1  # flag: start again from the base model, or from the snapshot that comes along
EVALUATE = 2  # flag: evaluate the parameters before the round is measured
COMPARE = 4  # flag: measure the batch of the step that was taken last as well
ATTEMPT_FOLLOWS = 8  # flag: the round was skipped that often; numbers are sealed anew
GRADIENT, OUTCOME_FOLLOWS = 1, 2  # flags: the reply ends with a gradient, holds an outcome
BEFORE_FOLLOWS, AFTER_FOLLOWS = 4, 8  # flags: the reply holds these losses
SUMS_FOLLOW = 16  # flag: the outcome has scores beside its loss and its classes
NOT_SENT = math.nan  # a loss on the wire that the site keeps to itself
UNKNOWN = bytes(16)  # a request's digest if the server's own replica is not at the round
MISSING, DIVERGED = 0, 1  # reasons of a site that is behind: entries lack, digests differ
LONGEST_HELLO, LONGEST_TEXT = 4096, 200  # bytes of an introduction, characters of its texts
MAY_BE_EMPTY = "run", "roster"  # texts of an introduction
HELLO_NUMBERS = 1 << 31  # all numbers of an introduction are below it


@dataclass(frozen=True)
class Request:
    """Server to site: catch up, then measure round ``round``."""

    round: int  # the one to measure
    learning_rate: float  # of this round, for local steps
    digest: bytes  # 16, of the parameters at which the round is measured, or UNKNOWN
    run: bytes  # 16, names the run
    code: bytes  # 16, of the server's source files
    entries: Sequence[bytes] = ()  # those that the site lacks, oldest first
    reset: bool = False
    evaluate: bool = False
    compare: bool = False
    attempt: int = 0  # at the round, if its numbers are sealed: each is measured anew


@dataclass(frozen=True)
class Measured:
    """Site to server: the loss differences of a round, or its gradient, or both."""

    round: int
    differences: NDArray[np.float32]  # (K*q,) L(θ+εz) − L(θ−εz)
    examples: int
    loss: float | None  # mean over the examples and evaluations, float32; None: not sent
    seconds: float
    digest: bytes  # 16, of the parameters at which the site measured
    gradient: bytes = b""  # as its codec encoded it, if the round has one
    outcome: EvalSums | None = None  # on the site's own held-out examples, if requested
    before: float | None = None  # loss here of the batch of the step that comes next; float32
    after: float | None = None  # loss here of the batch of the step that was taken last; float32


@dataclass(frozen=True)
class Behind:
    """Site to server: the replica here cannot be brought to the round that was requested."""

    round: int
    reason: int  # MISSING or DIVERGED


@dataclass(frozen=True)
class Hello:
    """Site to server, on first contact: its name, its state and its device."""

    site: str  # the name from the node's config
    slot: int
    round: int
    base: str  # digest of the untrained parameters, hexadecimal
    code: str  # digest of its source files, hexadecimal
    run: str  # the run that its replica follows, hexadecimal; empty at first
    examples: int
    device: str
    dtype: str
    threads: int
    can_backpropagate: bool
    roster: str = ""  # digest of its roster, hexadecimal; empty: its numbers are not sealed


def encode_request(request: Request) -> bytes:
    """Return the bytes of the drawing above."""
    header = REQUEST.pack(
        MAGIC_REQUEST,
        RESET * request.reset
        | EVALUATE * request.evaluate
        | COMPARE * request.compare
        | ATTEMPT_FOLLOWS * bool(request.attempt),
        request.round,
        len(request.entries),
        request.learning_rate,
        request.digest,
        request.run,
        request.code,
    )
    attempt = ATTEMPT.pack(request.attempt) if request.attempt else b""
    entries = (LENGTH.pack(len(e)) + e for e in request.entries)
    return close_frame(b"".join([header, attempt, *entries]))


def decode_request(data: bytes) -> Request:
    """Read a request.

    Raises:
        WireError: the bytes are damaged or are no request.
    """
    body = open_frame(data, REQUEST, MAGIC_REQUEST)
    _, flags, round_, count, rate, digest, run, code = REQUEST.unpack_from(body)
    at, attempt = REQUEST.size, 0
    if flags & ATTEMPT_FOLLOWS:
        if len(body) < at + ATTEMPT.size:
            raise WireError(f"{at + ATTEMPT.size} bytes expected, got {len(body)}")
        (attempt,) = ATTEMPT.unpack_from(body, at)
        at += ATTEMPT.size
    entries: list[bytes] = []
    for _ in range(count):
        size = LENGTH.unpack_from(body, at)[0] if at + LENGTH.size <= len(body) else len(body)
        if at + LENGTH.size + size > len(body):
            raise WireError(f"{count} entries expected, the bytes end within number {len(entries)}")
        entries.append(body[at + LENGTH.size : at + LENGTH.size + size])
        at += LENGTH.size + size
    if at != len(body):
        raise WireError(f"{at} bytes expected, got {len(body)}")
    reset, evaluate, compare = (bool(flags & flag) for flag in (RESET, EVALUATE, COMPARE))
    about = round_, rate, digest, run, code
    return Request(*about, tuple(entries), reset, evaluate, compare, attempt)


def encode_reply(reply: Measured | Behind | Sealed) -> bytes:
    """Return the bytes of the drawing above.

    They are 44 + 4 * K * q + 4 for each loss beside them + outcome + gradient if measured.
    """
    if isinstance(reply, Sealed):
        return encode_sealed(reply)
    if isinstance(reply, Behind):
        return close_frame(BEHIND.pack(MAGIC_BEHIND, reply.reason, reply.round))
    header = MEASURED.pack(
        MAGIC_MEASURED,
        _flags(reply),
        reply.round,
        len(reply.differences),
        reply.examples,
        NOT_SENT if reply.loss is None else reply.loss,
        reply.seconds,
        reply.digest,
    )
    numbers, outcome = reply.differences.astype("<f4").tobytes(), encode_outcome(reply.outcome)
    losses = b"".join(LOSS.pack(x) for x in (reply.before, reply.after) if x is not None)
    return close_frame(header + numbers + losses + outcome + reply.gradient)


def _flags(reply: Measured) -> int:
    return (
        GRADIENT * bool(reply.gradient)
        | OUTCOME_FOLLOWS * (reply.outcome is not None)
        | BEFORE_FOLLOWS * (reply.before is not None)
        | AFTER_FOLLOWS * (reply.after is not None)
        | SUMS_FOLLOW * (reply.outcome is not None and bool(reply.outcome.sums))
    )


def decode_reply(data: bytes) -> Measured | Behind | Sealed:
    """Read a reply.

    Raises:
        WireError: the bytes are damaged or are no reply.
    """
    if is_behind_reply(data):
        _, reason, round_ = BEHIND.unpack(open_frame(data, BEHIND, MAGIC_BEHIND, exact=True))
        return Behind(round_, reason)
    if magic_of(data) == MAGIC_SEALED:
        return decode_sealed(data)
    body = open_frame(data, MEASURED, MAGIC_MEASURED)
    _, flags, round_, numbers, examples, loss, seconds, digest = MEASURED.unpack_from(body)
    end = MEASURED.size + 4 * numbers
    before = _decode_loss(body, end) if flags & BEFORE_FOLLOWS else None
    end += LOSS.size * (before is not None)
    after = _decode_loss(body, end) if flags & AFTER_FOLLOWS else None
    end += LOSS.size * (after is not None)
    outcome = decode_outcome(body, end) if flags & OUTCOME_FOLLOWS else None
    if outcome is not None:
        end += outcome_bytes(outcome.classes)
    if outcome is not None and flags & SUMS_FOLLOW:
        outcome = replace(outcome, sums=decode_sums(body, end))
        end += sums_bytes(outcome.sums)
    if len(body) < end or (len(body) > end) != bool(flags & GRADIENT):
        raise WireError(
            f"{numbers} numbers expected, got {len(body) - MEASURED.size} bytes of them"
        )
    values = np.frombuffer(body, "<f4", numbers, MEASURED.size).astype(np.float32)
    sent = None if math.isnan(loss) else loss
    measured = round_, values, examples, sent, seconds, digest
    return Measured(*measured, body[end:], outcome, before, after)


def is_behind_reply(data: bytes) -> bool:
    """Tell from the magic number alone whether a reply is that of a site that is behind."""
    return magic_of(data) == MAGIC_BEHIND


def _decode_loss(body: bytes, at: int) -> float:
    if len(body) < at + LOSS.size:
        raise WireError(f"a loss of {LOSS.size} bytes expected, got {len(body) - at}")
    loss: float = LOSS.unpack_from(body, at)[0]
    return loss


def encode_hello(hello: Hello) -> bytes:
    """Return a JSON object of the fields."""
    return json.dumps(asdict(hello)).encode()


def decode_hello(data: bytes) -> Hello:
    """Read an introduction.

    Raises:
        WireError: a field is missing, of another type, or out of range.
    """
    if len(data) > LONGEST_HELLO:
        raise WireError(f"an introduction of at most {LONGEST_HELLO} bytes expected: {len(data)}")
    try:
        read = json.loads(data)
        values = [read[field.name] for field in fields(Hello)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError(f"an introduction expected, got {data[:80]!r}") from error
    for field, value in zip(fields(Hello), values, strict=True):
        if type(value) is not field.type or not _sensible(field.name, value):
            raise WireError(f"introduction: {field.name} is {str(value)[:80]!r}")
    return Hello(*values)


def _sensible(name: str, value: str | int | bool) -> bool:
    """Tell whether a value can go into logs, the ledger, and the words of a key."""
    if isinstance(value, str):
        return (
            len(value) <= LONGEST_TEXT
            and value.isprintable()
            and bool(value or name in MAY_BE_EMPTY)
        )
    return (name == "slot") <= value < HELLO_NUMBERS
