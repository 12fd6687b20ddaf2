"""The calls between a ClientApp and the process that does its work, and the bytes of each call."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from shared.base.errors import WireError

# frame: | header length u64 | header, JSON | parts x (| length u64 | bytes |) |  little-endian
# The header of a call has the run's and the node's config; of an answer, whether it is dense.
LENGTH = struct.Struct("<Q")
SERVICE = "dandelion.Worker"
STATUS, HELLO, TRAIN, STOP = "Status", "Hello", "Train", "Stop"
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # else each failed connection delays the next ones
]


class Work(Protocol):
    """The work of one node, done by this process or by a resident worker."""

    def hello(self) -> bytes:
        """Return the node's introduction, encoded."""

    def train(self, payload: bytes, snapshot: bytes | None) -> tuple[bytes, bool]:
        """Return the reply to an encoded request, encoded, and whether a gradient is in it."""


def path(call: str) -> str:
    """The method's name as gRPC has it."""
    return f"/{SERVICE}/{call}"


def encode_frame(header: Mapping[str, Any], parts: Sequence[bytes] = ()) -> bytes:
    """Encode a header and byte strings as drawn above."""
    listed = [json.dumps(dict(header), sort_keys=True).encode(), *parts]
    return b"".join(LENGTH.pack(len(part)) + part for part in listed)


def decode_frame(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Decode a frame into its header and parts.

    Raises:
        WireError: it is damaged.
    """
    at, parts = 0, list[bytes]()
    while at < len(data):
        size = LENGTH.unpack_from(data, at)[0] if at + LENGTH.size <= len(data) else len(data)
        if at + LENGTH.size + size > len(data):
            raise WireError(f"a whole frame expected, got {len(data)} bytes")
        parts.append(data[at + LENGTH.size : at + LENGTH.size + size])
        at += LENGTH.size + size
    try:
        header = json.loads(parts[0])
    except (ValueError, IndexError) as error:
        raise WireError(f"a frame with a header expected, got {data[:80]!r}") from error
    if not isinstance(header, dict):
        raise WireError(f"a header with names expected, got {header!r}")
    return header, parts[1:]


def encode_answer(payload: bytes, dense: bool = False) -> bytes:
    """Encode what a call of ``Work`` returns."""
    return encode_frame({"dense": dense}, [payload])


def decode_answer(data: bytes) -> tuple[bytes, bool]:
    """Decode the answer to a call: the payload, and whether a gradient is in it.

    Raises:
        WireError: it is damaged.
    """
    header, parts = decode_frame(data)
    if len(parts) != 1 or not isinstance(header.get("dense"), bool):
        raise WireError(f"one payload and 'dense' expected, got {len(parts)} and {header!r}")
    return parts[0], header["dense"]
