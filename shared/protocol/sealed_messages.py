"""Messages of a sealed sum: boxes from a site, and what a committee's member adds up.

A site's reply has one box for each member of the committee and nothing that depends on its data in
the open. The server hands each member the boxes of a cohort, in parts, and gets the sum of each.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import WireError
from shared.protocol.frames import close_frame, magic_of, open_frame

# sealed:      | magic u16 | members u16 | round u32 | attempt u32 | needed u32 | numbers u32 |
#              digest 16 | roster 16 | request 32 | members x slot u32 |
#              members x box (8 x numbers + 16) | crc32 u32
# sum request: | magic u16 | parts u16 | round u32 | attempt u32 | numbers u32 | sites u32 |
#              digest 16 | run 16 | code 16 | sites x (| slot u32 | part u32 | request 32 |) |
#              sites x box (8 x numbers + 16) | crc32 u32
# sum reply:   | magic u16 | parts u16 | round u32 | attempt u32 | numbers u32 | cohort 32 |
#              parts x numbers x u64 | crc32 u32
# sum refused: | magic u16 | zero u16 | reason, UTF-8 | crc32 u32                    little-endian
SEALED = struct.Struct("<HHIIII16s16s32s")
SUM_REQUEST = struct.Struct("<HHIIII16s16s16s")
SUM_REPLY = struct.Struct("<HHIII32s")
SUM_REFUSED = struct.Struct("<HH")
SITE = struct.Struct("<II32s")
MAGIC_SEALED, MAGIC_SUM_REQUEST, MAGIC_SUM_REPLY, MAGIC_SUM_REFUSED = 0xDE14, 0xDE15, 0xDE16, 0xDE17
LONGEST_REASON = 2000  # characters of a refusal
NUMBER_BYTES, TAG_BYTES = 8, 16


def box_bytes(numbers: int) -> int:
    """The bytes of a box with so many numbers."""
    return NUMBER_BYTES * numbers + TAG_BYTES


@dataclass(frozen=True)
class Sealed:
    """Site to server: shares of a round's numbers, each in a box for one member."""

    round: int
    attempt: int
    needed: int  # how many members' sums give a sum
    numbers: int  # in each box
    digest: bytes  # 16, of the parameters at which the site measured
    roster: bytes  # 16, digest of the roster from which the committee was drawn
    request: bytes  # 32, the site's own random name of the request and its answer
    boxes: Mapping[int, bytes]  # by the members' slots, in rising order

    @property
    def committee(self) -> tuple[object, ...]:
        """What all sites of a cohort must agree on."""
        return self.roster, self.needed, tuple(self.boxes)


@dataclass(frozen=True)
class CohortSite:
    """One site of a cohort: its numbers go into the sum of its part."""

    slot: int
    part: int
    request: bytes  # 32


@dataclass(frozen=True)
class SumRequest:
    """Server to a member: add up the shares of this cohort, part by part."""

    round: int
    attempt: int
    numbers: int
    parts: int
    digest: bytes  # 16
    run: bytes  # 16
    code: bytes  # 16, of the server's source files
    cohort: Sequence[CohortSite]
    boxes: Sequence[bytes]  # for this member, in the cohort's order


@dataclass(frozen=True)
class SumReply:
    """Member to server: the sum of the shares of each part."""

    round: int
    attempt: int
    cohort: bytes  # 32
    sums: NDArray[np.uint64]  # (parts, numbers)


def cohort_digest(digest: bytes, cohort: Sequence[CohortSite]) -> bytes:
    """32 bytes that name a cohort: its parts, its sites, and their very answers."""
    rows = sorted(SITE.pack(site.slot, site.part, site.request) for site in cohort)
    return sha256(digest + b"".join(rows)).digest()


def encode_sealed(reply: Sealed) -> bytes:
    """Return the bytes of the drawing above: 88 + members · (20 + 8 · numbers)."""
    header = SEALED.pack(
        MAGIC_SEALED, len(reply.boxes), reply.round, reply.attempt, reply.needed, reply.numbers,
        reply.digest, reply.roster, reply.request,
    )  # fmt: skip
    slots = np.array(list(reply.boxes), "<u4").tobytes()
    return close_frame(header + slots + b"".join(reply.boxes.values()))


def decode_sealed(data: bytes) -> Sealed:
    """Read a site's boxes.

    Raises:
        WireError: the bytes are damaged, or the members are not distinct and in rising order.
    """
    body = open_frame(data, SEALED, MAGIC_SEALED)
    _, members, round_, attempt, needed, numbers, digest, roster, request = SEALED.unpack_from(body)
    first, size = SEALED.size + 4 * members, box_bytes(numbers)
    _check_length(body, first + members * size)
    slots = np.frombuffer(body, "<u4", members, SEALED.size).tolist()
    if slots != sorted(set(slots)) or not 0 < needed <= members:
        raise WireError(f"distinct members in order, {needed} of them needed: got {slots}")
    boxes = dict(zip(slots, _cut(body, first, size), strict=True))
    return Sealed(round_, attempt, needed, numbers, digest, roster, request, boxes)


def encode_sum_request(request: SumRequest) -> bytes:
    """Return the bytes of the drawing above: 72 + sites · (56 + 8 · numbers)."""
    header = SUM_REQUEST.pack(
        MAGIC_SUM_REQUEST, request.parts, request.round, request.attempt, request.numbers,
        len(request.cohort), request.digest, request.run, request.code,
    )  # fmt: skip
    sites = b"".join(SITE.pack(site.slot, site.part, site.request) for site in request.cohort)
    return close_frame(header + sites + b"".join(request.boxes))


def is_sum_request(data: bytes) -> bool:
    """Tell from the magic number alone whether a request is for a sum."""
    return magic_of(data) == MAGIC_SUM_REQUEST


def decode_sum_request(data: bytes) -> SumRequest:
    """Read a request for a sum.

    Raises:
        WireError: the bytes are damaged, a site is there twice, or a part has none.
    """
    body = open_frame(data, SUM_REQUEST, MAGIC_SUM_REQUEST)
    _, parts, round_, attempt, numbers, sites = (header := SUM_REQUEST.unpack_from(body))[:6]
    first, size = SUM_REQUEST.size + SITE.size * sites, box_bytes(numbers)
    _check_length(body, first + sites * size)
    cohort = [CohortSite(*each) for each in SITE.iter_unpack(body[SUM_REQUEST.size : first])]
    if len({site.slot for site in cohort}) != sites:
        raise WireError("a cohort of distinct sites expected")
    if {site.part for site in cohort} != set(range(parts)):
        raise WireError(f"sites in each of {parts} parts expected")
    boxes = _cut(body, first, size)
    digest, run, code = header[6:]
    return SumRequest(round_, attempt, numbers, parts, digest, run, code, cohort, boxes)


def encode_sum_reply(reply: SumReply) -> bytes:
    """Return the bytes of the drawing above: 52 + 8 · parts · numbers."""
    parts, numbers = reply.sums.shape
    header = SUM_REPLY.pack(
        MAGIC_SUM_REPLY, parts, reply.round, reply.attempt, numbers, reply.cohort
    )
    return close_frame(header + reply.sums.astype("<u8").tobytes())


def decode_sum_reply(data: bytes) -> SumReply:
    """Read a member's sums; whether they are elements of the field is not checked.

    Raises:
        WireError: the bytes are damaged or are no such reply.
    """
    body = open_frame(data, SUM_REPLY, MAGIC_SUM_REPLY)
    _, parts, round_, attempt, numbers, cohort = SUM_REPLY.unpack_from(body)
    _check_length(body, SUM_REPLY.size + NUMBER_BYTES * parts * numbers)
    sums = np.frombuffer(body, "<u8", parts * numbers, SUM_REPLY.size).astype(np.uint64)
    return SumReply(round_, attempt, cohort, sums.reshape(parts, numbers))


def encode_sum_refusal(reason: str) -> bytes:
    """Return the bytes by which a member says why it does not add up, beside a round's reply."""
    header = SUM_REFUSED.pack(MAGIC_SUM_REFUSED, 0)
    return close_frame(header + reason[:LONGEST_REASON].encode(errors="replace"))


def decode_sum_answer(data: bytes) -> SumReply | str:
    """Read a member's sums, or the reason for which there are none.

    Raises:
        WireError: the bytes are damaged or are neither.
    """
    if magic_of(data) != MAGIC_SUM_REFUSED:
        return decode_sum_reply(data)
    body = open_frame(data, SUM_REFUSED, MAGIC_SUM_REFUSED)
    return body[SUM_REFUSED.size :].decode(errors="replace")[:LONGEST_REASON]


def _check_length(body: bytes, size: int) -> None:
    if len(body) != size:
        raise WireError(f"{size} bytes expected, got {len(body)}")


def _cut(body: bytes, first: int, size: int) -> list[bytes]:
    return [body[at : at + size] for at in range(first, len(body), size)]
