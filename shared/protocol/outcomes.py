"""What a site's evaluation sends, byte for byte: loss, table of classes, and scores by name."""

import struct
from collections.abc import Iterable, Mapping

import numpy as np

from shared.base.errors import WireError
from shared.base.metrics import EvalSums

# outcome:  | total f64 | examples u32 | classes u32 | classes x classes x u32 |
# sums:     | scores u32 | scores x (| length u32 | name, UTF-8 | sum over the examples f64 |) |
OUTCOME = struct.Struct("<dII")
LENGTH, SUM = struct.Struct("<I"), struct.Struct("<d")
MOST_CLASSES = 1 << 12
MOST_SCORES = 1 << 8


def outcome_bytes(classes: int, scores: Iterable[str] = ()) -> int:
    """The bytes of an outcome of so many classes, and of the sums of ``scores`` after it."""
    return OUTCOME.size + 4 * classes**2 + sums_bytes(scores)


def is_sound(outcome: EvalSums, most: float) -> bool:
    """Whether counts agree, and loss and scores are finite and at most ``most`` for an example."""
    counted = int(outcome.confusion.sum()) if outcome.classes else outcome.examples
    totals = [outcome.total, *map(abs, outcome.sums.values())]
    return outcome.examples == counted > 0 and all(0 <= x <= most * counted for x in totals)


def encode_outcome(outcome: EvalSums | None) -> bytes:
    """The bytes of an outcome and its sums; none without an outcome."""
    if outcome is None:
        return b""
    header = OUTCOME.pack(outcome.total, outcome.examples, len(outcome.confusion))
    return header + outcome.confusion.astype("<u4").tobytes() + _encode_sums(outcome.sums)


def sums_bytes(names: Iterable[str]) -> int:
    """The bytes that sums of these names take in a reply."""
    each = [LENGTH.size + len(name.encode()) + SUM.size for name in names]
    return LENGTH.size * bool(each) + sum(each)


def _encode_sums(sums: Mapping[str, float]) -> bytes:
    parts = [LENGTH.pack(len(sums))] if sums else []
    for name, value in sums.items():
        parts += [LENGTH.pack(len(name.encode())), name.encode(), SUM.pack(value)]
    return b"".join(parts)


def decode_sums(body: bytes, at: int) -> dict[str, float]:
    """Read scores and their names.

    Raises:
        WireError: there are too few bytes, too many scores, a name twice, or one that is no text.
    """
    sums: dict[str, float] = {}
    try:
        count = LENGTH.unpack_from(body, at)[0]
        at += LENGTH.size
        for _ in range(min(count, MOST_SCORES + 1)):
            size = LENGTH.unpack_from(body, at)[0]
            name = body[at + LENGTH.size : at + LENGTH.size + size].decode()
            at += LENGTH.size + size
            sums[name] = SUM.unpack_from(body, at)[0]
            at += SUM.size
    except (struct.error, UnicodeDecodeError) as error:
        raise WireError(f"scores with names and sums expected, got {error}") from error
    if not 0 < len(sums) == count <= MOST_SCORES:
        raise WireError(f"1 to {MOST_SCORES} scores of different names expected, got {count}")
    return sums


def decode_outcome(body: bytes, at: int) -> EvalSums:
    """Read an outcome without its sums, from byte ``at`` of a reply.

    Raises:
        WireError: there are too few bytes, or too many classes.
    """
    if len(body) < at + OUTCOME.size:
        raise WireError(f"an outcome of {OUTCOME.size} bytes expected, got {len(body) - at}")
    total, examples, classes = OUTCOME.unpack_from(body, at)
    first = at + OUTCOME.size
    if classes > MOST_CLASSES or len(body) < first + 4 * classes**2:
        raise WireError(f"{classes} classes expected, got {len(body) - first} bytes of them")
    counts = np.frombuffer(body, "<u4", classes**2, first).astype(np.int64)
    return EvalSums(total, examples, counts.reshape(classes, classes))
