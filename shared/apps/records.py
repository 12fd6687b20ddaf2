"""The messages of a run in somebody else's app as Flower's records.

to a client:   config     the app's own settings (ConfigRecord), with "server-round"
dandelion  "request", bytes as shared.protocol.messages draws them; "run", JSON,
if the client may not know the run
snapshot, frozen   ArrayRecords, if the client has no model of the run
to the server: dandelion  "reply", bytes; "site" and "slot", who sends it
metrics    MetricRecord with the app's own numbers and the client's weight
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from shared.base.errors import WireError
from shared.protocol.flower_records import RAW
from shared.protocol.messages import HELLO_NUMBERS, LONGEST_TEXT
from shared.protocol.site_id import SiteId
from shared.protocol.transfers import Kind

OURS, METRICS = "dandelion", "metrics"
SNAPSHOT, FROZEN = "dandelion.snapshot", "dandelion.frozen"
ZLIB = "zlib"  # the serialisation type of bytes that are compressed
REQUEST, RUN, REPLY, SITE, SLOT = "request", "run", "reply", "site", "slot"


@dataclass(frozen=True)
class AppRequest:
    """What the server sends a client, as far as it is ours."""

    request: bytes
    run: str = ""  # JSON; empty: the client knows it
    snapshot: bytes | None = None
    frozen: Mapping[str, Tensor] | None = None  # None: the client has them
    compress: bool = False  # the snapshot, on its way


@dataclass(frozen=True)
class AppReply:
    """What a client sends back."""

    reply: bytes
    site: SiteId
    metrics: MetricRecord


def pack_request(sent: AppRequest, config_key: str, config: ConfigRecord) -> RecordDict:
    """Return the records of a message to a client."""
    ours = ConfigRecord({REQUEST: sent.request, **({RUN: sent.run} if sent.run else {})})
    content = RecordDict({config_key: ConfigRecord(dict(config)), OURS: ours})
    if sent.snapshot is not None:
        content[SNAPSHOT] = pack_bytes(sent.snapshot, sent.compress)
    if sent.frozen is not None:
        content[FROZEN] = pack_tensors(sent.frozen)
    return content


def unpack_request(content: RecordDict) -> AppRequest:
    """Return what ``pack_request`` was called with.

    Raises:
        WireError: these are the records of another strategy.
    """
    ours = content.get(OURS)
    request = ours.get(REQUEST) if isinstance(ours, ConfigRecord) else None
    run = ours.get(RUN, "") if isinstance(ours, ConfigRecord) else ""
    if not isinstance(request, bytes) or not isinstance(run, str):
        raise WireError(
            f"a request of dandelion.ZerothOrder expected, got records {sorted(content)}: "
            "does the ServerApp use this strategy?"
        )
    snapshot = unpack_bytes(content, SNAPSHOT) if SNAPSHOT in content else None
    frozen = unpack_tensors(content, FROZEN) if FROZEN in content else None
    return AppRequest(request, run, snapshot, frozen)


def pack_reply(sent: AppReply) -> RecordDict:
    """Return the records of a reply."""
    return RecordDict({OURS: describe_reply(sent.reply, sent.site), METRICS: sent.metrics})


def describe_reply(reply: bytes, site: SiteId) -> ConfigRecord:
    """Our record of a reply: its bytes, and who sends it."""
    return ConfigRecord({REPLY: reply, SITE: site.name, SLOT: site.slot})


def unpack_reply(content: RecordDict) -> AppReply:
    """Return what ``pack_reply`` was called with.

    Raises:
        WireError: these are the records of another handler, or name no site.
    """
    ours, metrics = content.get(OURS), list(content.metric_records.values())
    if not isinstance(ours, ConfigRecord) or len(metrics) != 1 or len(content) != 2:
        raise WireError(
            f"a record {OURS!r} and one MetricRecord expected, got {sorted(content)}: does the "
            "ClientApp use zeroth_order_handler and zeroth_order_mod?"
        )
    reply, name, slot = ours.get(REPLY), ours.get(SITE), ours.get(SLOT)
    if not isinstance(reply, bytes) or len(ours) != 3:
        raise WireError(f"bytes {REPLY!r} and a site expected, got {sorted(ours)}")
    if not (isinstance(name, str) and 0 < len(name) <= LONGEST_TEXT and name.isprintable()):
        raise WireError(f"the name of a site expected, got {str(name)[:80]!r}")
    if type(slot) is not int or not 0 < slot < HELLO_NUMBERS:
        raise WireError(f"a slot from 1 to {HELLO_NUMBERS - 1} expected, got {slot!r}")
    return AppReply(reply, SiteId(slot, name), metrics[0])


def kind_of(message: Message) -> Kind:
    """What a message carries: scalars, or a model as well."""
    if message.has_error() or OURS not in message.content:
        return "control"
    return "snapshot" if SNAPSHOT in message.content or FROZEN in message.content else "scalars"


def pack_bytes(data: bytes, compress: bool = False) -> ArrayRecord:
    """Bytes as the only array of a record, which Flower sends in chunks.

    The vector of a small model is mostly padding, which ``compress`` takes away.
    """
    kept, kind = (zlib.compress(data, 1), ZLIB) if compress else (data, RAW)
    return ArrayRecord({OURS: Array(dtype="uint8", shape=(len(data),), stype=kind, data=kept)})


def unpack_bytes(content: RecordDict, name: str) -> bytes:
    """Return the bytes of a record that ``pack_bytes`` made.

    Raises:
        WireError: the record has something else.
    """
    record = content[name]
    array = record.get(OURS) if isinstance(record, ArrayRecord) and len(record) == 1 else None
    if array is None or array.stype not in (RAW, ZLIB) or len(array.shape) != 1:
        raise WireError(f"a record {name!r} with one array of bytes expected, got {sorted(record)}")
    if array.stype == RAW:
        return bytes(array.data)
    try:
        return zlib.decompressobj().decompress(array.data, array.shape[0])  # and no more
    except zlib.error as error:
        raise WireError(f"record {name!r} is damaged ({error})") from error


def pack_tensors(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors of any dtype as a record: their bytes, shapes and dtypes."""
    record = ArrayRecord()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        data = whole.reshape(-1).view(torch.uint8).numpy().tobytes()
        dtype = str(whole.dtype).removeprefix("torch.")
        record[name] = Array(dtype=dtype, shape=tuple(whole.shape), stype=RAW, data=data)
    return record


def unpack_tensors(content: RecordDict, name: str) -> dict[str, Tensor]:
    """Return the tensors of a record that ``pack_tensors`` made.

    Raises:
        WireError: the record has something else.
    """
    record = content[name]
    if not isinstance(record, ArrayRecord):
        raise WireError(f"a record {name!r} of tensors expected, got {type(record).__name__}")
    return {key: _tensor_of(name, key, array) for key, array in record.items()}


def _tensor_of(record: str, key: str, array: Array) -> Tensor:
    dtype = getattr(torch, array.dtype, None)
    if array.stype != RAW or not isinstance(dtype, torch.dtype):
        raise WireError(f"record {record!r}: a tensor {key!r} expected, got {array.dtype}")
    try:
        flat = torch.frombuffer(bytearray(array.data), dtype=dtype) if array.data else None
        empty = torch.empty(0, dtype=dtype)
        return (empty if flat is None else flat).reshape(array.shape)
    except (RuntimeError, ValueError) as error:
        raise WireError(f"record {record!r}: tensor {key!r} is damaged ({error})") from error
