"""Messages as Flower's records, and the number of bytes that each of them takes."""

import copy
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto

from shared.base.errors import WireError
from shared.protocol.messages import is_behind_reply

PAYLOAD, RIDER = "b", "r"  # what a record holds: a payload, and a message that rides with it
DENSE = "g"  # the record of a payload that holds a gradient
STAND_IN = 1 << 21  # bytes from which on a length takes as many bytes as that of any longer one
RAW = "bytes"  # the serialisation type of Flower's arrays: the bytes as they are


def pack(
    payload: bytes, snapshot: bytes | None = None, dense: bool = False, rider: bytes = b""
) -> RecordDict:
    """Return records that carry ``payload`` and a snapshot, which Flower sends in chunks.

    A payload with gradients (``dense``) is sent in chunks too; ``is_dense`` recognises it. A
    ``rider`` is a second small message in the same record; a payload with gradients has none.
    """
    if dense:
        assert not rider, "rounds with gradients have no sealed sums"
        content = RecordDict({DENSE: ArrayRecord({DENSE: _to_array(payload)})})
    else:
        riding = {RIDER: rider} if rider else {}
        content = RecordDict({"d": ConfigRecord({PAYLOAD: payload, **riding})})
    if snapshot is not None:
        content["s"] = ArrayRecord({"s": _to_array(snapshot)})
    return content


def _to_array(data: bytes) -> Array:
    return Array(dtype="uint8", shape=(len(data),), stype=RAW, data=data)


def is_dense(content: RecordDict) -> bool:
    """Tell whether ``pack`` was called with ``dense``."""
    return DENSE in content


def unpack(content: RecordDict) -> tuple[bytes, bytes | None]:
    """Return the payload and the snapshot that ``pack`` was called with.

    Raises:
        WireError: these are not the records that ``pack`` returns.
    """
    record, arrays = content.get("d"), content.get("s")
    payload = record.get(PAYLOAD) if isinstance(record, ConfigRecord) and _is_ours(record) else None
    if DENSE in content:
        payload = _unpack_array(content, DENSE)
    if not isinstance(payload, bytes) or len(content) != 1 + (arrays is not None):
        raise WireError(f"a record 'd' with bytes 'b' expected, got {sorted(content)}")
    return payload, None if arrays is None else _unpack_array(content, "s")


def _is_ours(record: ConfigRecord) -> bool:
    """Whether a record holds a payload and perhaps a rider, both bytes, and nothing else."""
    return record.keys() <= {PAYLOAD, RIDER} and isinstance(record.get(RIDER, b""), bytes)


def rider_of(content: RecordDict) -> bytes:
    """Return the message that rides with the payload of ``content``; empty: there is none."""
    record = content.get("d")
    rider = record.get(RIDER, b"") if isinstance(record, ConfigRecord) else b""
    return rider if isinstance(rider, bytes) else b""


def _unpack_array(content: RecordDict, name: str) -> bytes:
    """Return the bytes of the only array of an array record, both of one name."""
    arrays = content.get(name)
    array = arrays.get(name) if isinstance(arrays, ArrayRecord) and len(arrays) == 1 else None
    if array is None or array.stype != RAW:
        got = sorted(content[name])
        raise WireError(f"a record {name!r} with one array {name!r} of {RAW} expected, got {got}")
    return array.data


def says_behind(message: Message) -> bool:
    """Tell from its magic number whether a message is the reply of a site that is behind."""
    try:
        return not message.has_error() and is_behind_reply(unpack(message.content)[0])
    except WireError:
        return False


def payload_bytes(message: Message) -> int:
    """Return the bytes of our records in a message, without Flower's envelope; 0 in an error."""
    if message.has_error():
        return 0
    return sum(
        len(value.data) if isinstance(value, Array) else len(value)
        for record in message.content.values()
        for value in record.values()
        if isinstance(value, bytes | Array)
    )


def message_bytes(message: Message) -> int:
    """Return the length of a message as Flower serialises it, payload included.

    A long payload is counted without a copy of it; from 256 MiB on, up to some bytes too few.
    """
    if payload_bytes(message) <= STAND_IN:
        return int(message_to_proto(message).ByteSize())
    twin, content = copy.copy(message), RecordDict()
    for name, record in message.content.items():
        content[name] = copy.copy(record)
        short = {key: _shorten(value) for key, value in record.items()}
        content[name].__dict__["_data"] = short
    twin.__dict__["_content"] = content
    left_away = payload_bytes(message) - payload_bytes(twin)
    return int(message_to_proto(twin).ByteSize()) + left_away


def _shorten(value: Any) -> Any:  # noqa: ANN401  (what Flower's records hold)
    """The value, or one of its kind with STAND_IN bytes if it has more."""
    if isinstance(value, Array) and len(value.data) > STAND_IN:
        return Array(value.dtype, value.shape, value.stype, bytes(STAND_IN))
    return bytes(STAND_IN) if isinstance(value, bytes) and len(value) > STAND_IN else value
