"""Payloads as Flower's records, and every byte counted where it is made."""

from dataclasses import dataclass
from typing import Literal

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto

from shared.base.errors import WireError
from shared.protocol.messages import begins_behind

Direction = Literal["up", "down"]
Kind = Literal["scalars", "gradient", "snapshot", "control"]


@dataclass(frozen=True, slots=True)
class Transfer:
    """One message's bytes: as encoded by us, and as serialised with Flower's envelope."""

    round: int
    site: str
    direction: Direction  # up: from a site to the server
    kind: Kind  # scalars: loss differences and entries; control: introductions, refusals
    payload: int
    message: int


DENSE = "g"  # the record of a payload that holds a gradient
RAW = "bytes"  # how a snapshot or a gradient is serialised within Flower's array: not at all


def pack(payload: bytes, snapshot: bytes | None = None, dense: bool = False) -> RecordDict:
    """One record that carries ``payload``; a snapshot goes beside it, which Flower chunks.

    A payload with gradients (``dense``) is chunked too, and is told by it where bytes are counted.
    """
    if dense:
        content = RecordDict({DENSE: ArrayRecord({DENSE: _array(payload)})})
    else:
        content = RecordDict({"d": ConfigRecord({"b": payload})})
    if snapshot is not None:
        content["s"] = ArrayRecord({"s": _array(snapshot)})
    return content


def _array(data: bytes) -> Array:
    return Array(dtype="uint8", shape=(len(data),), stype=RAW, data=data)


def is_dense(content: RecordDict) -> bool:
    """Whether ``pack`` was told that gradients are in it."""
    return DENSE in content


def unpack(content: RecordDict) -> tuple[bytes, bytes | None]:
    """What ``pack`` was given; WireError where the record is another."""
    record, arrays = content.get("d"), content.get("s")
    payload = record.get("b") if isinstance(record, ConfigRecord) and len(record) == 1 else None
    if DENSE in content:
        payload = _only(content, DENSE)
    if not isinstance(payload, bytes) or len(content) != 1 + (arrays is not None):
        raise WireError(f"a record 'd' with bytes 'b' expected, got {sorted(content)}")
    return payload, None if arrays is None else _only(content, "s")


def _only(content: RecordDict, name: str) -> bytes:
    """The bytes of the one array of an array record, both of one name."""
    arrays = content.get(name)
    array = arrays.get(name) if isinstance(arrays, ArrayRecord) and len(arrays) == 1 else None
    if array is None or array.stype != RAW:
        got = sorted(content[name])
        raise WireError(f"a record {name!r} with one array {name!r} of {RAW} expected, got {got}")
    return array.data


def says_behind(message: Message) -> bool:
    """Whether a reply begins as one of a site that is behind does; the rest is not looked at."""
    try:
        return not message.has_error() and begins_behind(unpack(message.content)[0])
    except WireError:
        return False


def payload_bytes(message: Message) -> int:
    """Bytes of ours in a message, without Flower's envelope; 0 in an error."""
    if message.has_error():
        return 0
    return sum(
        len(value.data) if isinstance(value, Array) else len(value)
        for record in message.content.values()
        for value in record.values()
        if isinstance(value, bytes | Array)
    )


def message_bytes(message: Message) -> int:
    """Length of a message as serialised, its payload included."""
    return int(message_to_proto(message).ByteSize())
