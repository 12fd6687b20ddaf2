"""TensorBoard's event files: known answers, and what is written is what the ledger says."""

import struct

import pytest
from federation import config
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from typer.testing import CliRunner

from dandelion.cli.app import app
from dandelion.engines.local import run_local
from server.tracking.tensorboard import crc32c, event, record, text_event

FIELDS = {
    "Plugin": [("plugin_name", 1, "STRING", "")],
    "Metadata": [("plugin_data", 1, "MESSAGE", "Plugin")],
    "Dim": [("size", 1, "INT64", "")],
    "Shape": [("dim", 2, "MESSAGE", "Dim")],
    "Tensor": [("dtype", 1, "INT32", ""), ("tensor_shape", 2, "MESSAGE", "Shape"),
               ("string_val", 8, "BYTES", "")],
    "Value": [("tag", 1, "STRING", ""), ("simple_value", 2, "FLOAT", ""),
              ("tensor", 8, "MESSAGE", "Tensor"), ("metadata", 9, "MESSAGE", "Metadata")],
    "Summary": [("value", 1, "MESSAGE", "Value")],
    "Event": [("wall_time", 1, "DOUBLE", ""), ("step", 2, "INT64", ""),
              ("file_version", 3, "STRING", ""), ("summary", 5, "MESSAGE", "Summary")],
}  # fmt: skip


@pytest.fixture(scope="module")
def reader():
    """``Event`` as protobuf's own library reads it, made from event.proto's field numbers."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="t", syntax="proto3")
    for message, listed in FIELDS.items():
        description = file.message_type.add(name=message)
        for name, number, kind, of in listed:
            label = kinds.LABEL_REPEATED if of == "Value" else kinds.LABEL_OPTIONAL
            field = description.field.add(name=name, number=number, label=label)
            field.type = getattr(kinds, f"TYPE_{kind}")
            if of:
                field.type_name = f".t.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Event"))


def events(data, reader):
    while data:
        (size,) = struct.unpack_from("<Q", data)
        body = data[12 : 12 + size]
        assert record(body) == data[: 16 + size]
        data = data[16 + size :]
        yield reader.FromString(body)


def test_the_checksum_is_the_known_one():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's and everybody's check value
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_an_event_is_read_by_protobuf_as_it_was_meant(reader):
    decoded = reader.FromString(event(1.5, 300, "round/loss", 0.25))
    assert (decoded.wall_time, decoded.step) == (1.5, 300)
    assert [(v.tag, v.simple_value) for v in decoded.summary.value] == [("round/loss", 0.25)]
    assert reader.FromString(event(2.0)).file_version == "brain.Event:2"


def test_a_text_is_read_by_protobuf_as_one_string_of_the_plugin_text(reader):
    decoded = reader.FromString(text_event(1.5, 7, "samples", "schön"))
    (value,) = decoded.summary.value
    assert (decoded.step, value.tag) == (7, "samples")
    assert value.metadata.plugin_data.plugin_name == "text"
    assert value.tensor.dtype == 7  # DT_STRING of TensorFlow's types.proto
    assert value.tensor.tensor_shape.dim.size == 1
    assert value.tensor.string_val.decode() == "schön"


def test_every_round_and_evaluation_of_a_run_is_written(tmp_path, reader):
    folder = run_local(config(tmp_path, eval_interval=1, sample_prompts="def", sample_tokens=2))
    done = CliRunner().invoke(app, ["tensorboard", str(folder)])
    assert done.exit_code == 0, done.exception
    (file,) = (folder / "tensorboard").glob("events.out.tfevents.*")
    first, *rest = events(file.read_bytes(), reader)
    assert first.file_version == "brain.Event:2"
    losses = [e.step for e in rest if e.summary.value[0].tag == "round/loss"]
    held_out = [e.step for e in rest if e.summary.value[0].tag == "held out/loss"]
    texts = [e.step for e in rest if e.summary.value[0].tag == "samples"]
    assert losses == [1, 2, 3]
    assert held_out == texts == [0, 1, 2, 3]
