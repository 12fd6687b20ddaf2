"""What travels between server and sites, byte for byte; a message carries it (``envelope``)."""

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import WireError
from shared.base.metrics import EvalSums

# request:  | magic u16 | flags u16 | round u32 | entries u32 | learning rate f64 | digest 16 |
#           run 16 | code 16 | entries x (| length u32 | bytes |) | crc32 u32
# measured: | magic u16 | flags u16 | round u32 | numbers u32 | examples u32 | loss f32 |
#           seconds f32 | digest 16 | numbers x f32 | if flagged: outcome | if flagged: gradient,
#           encoded | crc32 u32
# outcome:  | total f64 | examples u32 | classes u32 | classes x classes x u32 |
# behind:   | magic u16 | reason u16 | round u32 | crc32 u32                        little-endian
REQUEST = struct.Struct("<HHIId16s16s16s")
MEASURED = struct.Struct("<HHIIIff16s")
BEHIND = struct.Struct("<HHI")
OUTCOME = struct.Struct("<dII")
LENGTH = struct.Struct("<I")
MAGIC_REQUEST, MAGIC_MEASURED, MAGIC_BEHIND = 0xDE11, 0xDE12, 0xDE13
RESET = 1  # flag: forget the replica and start from the base model (or the snapshot that comes)
EVALUATE = 2  # flag: evaluate the parameters that the round is measured at
GRADIENT, EVALUATED = 1, 2  # flags: an encoded gradient follows, an outcome follows the numbers
MOST_CLASSES = 1 << 12
UNKNOWN = bytes(16)  # in a request: a server whose replica is behind does not know the digest
MISSING, DIVERGED = 0, 1  # reasons of a site that is behind
LONGEST_HELLO, LONGEST_TEXT = 4096, 200  # bytes, characters: no site needs more to introduce itself
LARGEST = 1 << 31  # numbers of an introduction are below it, slots above 0


@dataclass(frozen=True)
class Request:
    """Server to site: catch up, then measure round ``round``."""

    round: int  # to be measured
    learning_rate: float  # of this round, for local steps
    digest: bytes  # 16, of the parameters that it is to be measured at, or UNKNOWN
    run: bytes  # 16, names the run
    code: bytes  # 16, of the server's source files
    entries: Sequence[bytes] = ()  # what the site missed, oldest first
    reset: bool = False
    evaluate: bool = False


@dataclass(frozen=True)
class Measured:
    """Site to server: what it measured."""

    round: int
    differences: NDArray[np.float32]  # (K*q,) L(θ+εz) − L(θ−εz)
    examples: int
    loss: float  # mean over the examples and evaluations; float32
    seconds: float
    digest: bytes  # 16, of the parameters that it measured at
    gradient: bytes = b""  # as its codec encoded it, where the round asks for one
    outcome: EvalSums | None = None  # on the site's own held-out examples, where asked for


@dataclass(frozen=True)
class Behind:
    """Site to server: I cannot measure this round, my replica is at another one."""

    round: int
    reason: int  # MISSING or DIVERGED


@dataclass(frozen=True)
class Hello:
    """Site to server, when first met: who and where it is."""

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


def encode_request(request: Request) -> bytes:
    """Bytes of the drawing above."""
    head = REQUEST.pack(
        MAGIC_REQUEST,
        RESET * request.reset | EVALUATE * request.evaluate,
        request.round,
        len(request.entries),
        request.learning_rate,
        request.digest,
        request.run,
        request.code,
    )
    return _sealed(b"".join([head, *(LENGTH.pack(len(e)) + e for e in request.entries)]))


def decode_request(data: bytes) -> Request:
    """Read a request; WireError where it is damaged."""
    body = _unsealed(data, REQUEST, MAGIC_REQUEST)
    _, flags, round_, count, rate, digest, run, code = REQUEST.unpack_from(body)
    at = REQUEST.size
    entries: list[bytes] = []
    for _ in range(count):
        size = LENGTH.unpack_from(body, at)[0] if at + LENGTH.size <= len(body) else len(body)
        if at + LENGTH.size + size > len(body):
            raise WireError(f"{count} entries expected, the bytes end within number {len(entries)}")
        entries.append(body[at + LENGTH.size : at + LENGTH.size + size])
        at += LENGTH.size + size
    if at != len(body):
        raise WireError(f"{at} bytes expected, got {len(body)}")
    flagged = bool(flags & RESET), bool(flags & EVALUATE)
    return Request(round_, rate, digest, run, code, tuple(entries), *flagged)


def encode_reply(reply: Measured | Behind) -> bytes:
    """Bytes of the drawing above: 44 + 4 * K * q + outcome + gradient for a measurement."""
    if isinstance(reply, Behind):
        return _sealed(BEHIND.pack(MAGIC_BEHIND, reply.reason, reply.round))
    head = MEASURED.pack(
        MAGIC_MEASURED,
        GRADIENT * bool(reply.gradient) | EVALUATED * (reply.outcome is not None),
        reply.round,
        len(reply.differences),
        reply.examples,
        reply.loss,
        reply.seconds,
        reply.digest,
    )
    outcome = _encoded(reply.outcome)
    return _sealed(head + reply.differences.astype("<f4").tobytes() + outcome + reply.gradient)


def decode_reply(data: bytes) -> Measured | Behind:
    """Read a reply; WireError where it is damaged."""
    if begins_behind(data):
        _, reason, round_ = BEHIND.unpack(_unsealed(data, BEHIND, MAGIC_BEHIND, exact=True))
        return Behind(round_, reason)
    body = _unsealed(data, MEASURED, MAGIC_MEASURED)
    _, flags, round_, numbers, examples, loss, seconds, digest = MEASURED.unpack_from(body)
    end = MEASURED.size + 4 * numbers
    outcome = _decoded(body, end) if flags & EVALUATED else None
    end += outcome_bytes(outcome)
    if len(body) < end or (len(body) > end) != bool(flags & GRADIENT):
        raise WireError(
            f"{numbers} numbers expected, got {len(body) - MEASURED.size} bytes of them"
        )
    values = np.frombuffer(body, "<f4", numbers, MEASURED.size).astype(np.float32)
    return Measured(round_, values, examples, loss, seconds, digest, body[end:], outcome)


def begins_behind(data: bytes) -> bool:
    """Whether a reply begins as that of a site that is behind; the rest is not looked at."""
    return int.from_bytes(data[:2], "little") == MAGIC_BEHIND


def outcome_bytes(outcome: EvalSums | None) -> int:
    """How many bytes an outcome takes."""
    return OUTCOME.size + 4 * outcome.confusion.size if outcome is not None else 0


def _encoded(outcome: EvalSums | None) -> bytes:
    if outcome is None:
        return b""
    head = OUTCOME.pack(outcome.total, outcome.examples, len(outcome.confusion))
    return head + outcome.confusion.astype("<u4").tobytes()


def _decoded(body: bytes, at: int) -> EvalSums:
    if len(body) < at + OUTCOME.size:
        raise WireError(f"an outcome of {OUTCOME.size} bytes expected, got {len(body) - at}")
    total, examples, classes = OUTCOME.unpack_from(body, at)
    first = at + OUTCOME.size
    if classes > MOST_CLASSES or len(body) < first + 4 * classes**2:
        raise WireError(f"{classes} classes expected, got {len(body) - first} bytes of them")
    counts = np.frombuffer(body, "<u4", classes**2, first).astype(np.int64)
    return EvalSums(total, examples, counts.reshape(classes, classes))


def encode_hello(hello: Hello) -> bytes:
    """A JSON object of the fields."""
    return json.dumps(asdict(hello)).encode()


def decode_hello(data: bytes) -> Hello:
    """Read an introduction; WireError where a field lacks, is of another type, or out of range."""
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
    """Whether a value can go into logs, the ledger, and the words of a key."""
    if isinstance(value, str):
        return len(value) <= LONGEST_TEXT and value.isprintable() and bool(value or name == "run")
    return (name == "slot") <= value < LARGEST


def _sealed(body: bytes) -> bytes:
    return body + LENGTH.pack(crc32(body))


def _unsealed(data: bytes, head: struct.Struct, magic: int, exact: bool = False) -> bytes:
    size = head.size + LENGTH.size
    if len(data) < size or (exact and len(data) != size):
        raise WireError(f"{'' if exact else 'at least '}{size} bytes expected, got {len(data)}")
    if (got := int.from_bytes(data[:2], "little")) != magic:
        raise WireError(f"a frame {magic:#x} expected, got {got:#x}")
    body = data[: -LENGTH.size]
    if LENGTH.unpack(data[-LENGTH.size :])[0] != crc32(body):
        raise WireError("the frame's checksum does not fit its bytes")
    return body
