"""What a ClientApp and a resident worker say to each other: names of calls, bytes of frames."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from shared.base.errors import WireError

# frame: | head length u64 | head, JSON | parts x (| length u64 | bytes |) |      little-endian
LENGTH = struct.Struct("<Q")
SERVICE = "dandelion.Worker"
STATUS, HELLO, TRAIN, STOP = "Status", "Hello", "Train", "Stop"
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    (
        "grpc.use_local_subchannel_pool",
        1,
    ),  # else a failed look makes the next ones wait, ever longer
]


def path(call: str) -> str:
    """The method's name as gRPC has it."""
    return f"/{SERVICE}/{call}"


def encode_frame(head: Mapping[str, Any], parts: Sequence[bytes] = ()) -> bytes:
    """Bytes of the drawing above."""
    listed = [json.dumps(dict(head), sort_keys=True).encode(), *parts]
    return b"".join(LENGTH.pack(len(part)) + part for part in listed)


def decode_frame(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Read a frame; WireError where it is damaged."""
    at, parts = 0, list[bytes]()
    while at < len(data):
        size = LENGTH.unpack_from(data, at)[0] if at + LENGTH.size <= len(data) else len(data)
        if at + LENGTH.size + size > len(data):
            raise WireError(f"a whole frame expected, got {len(data)} bytes")
        parts.append(data[at + LENGTH.size : at + LENGTH.size + size])
        at += LENGTH.size + size
    try:
        head = json.loads(parts[0])
    except (ValueError, IndexError) as error:
        raise WireError(f"a frame with a head expected, got {data[:80]!r}") from error
    if not isinstance(head, dict):
        raise WireError(f"a head with names expected, got {head!r}")
    return head, parts[1:]
