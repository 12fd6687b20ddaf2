"""A snapshot restores all of a replica, or it is refused by name and changes nothing."""

import os
from dataclasses import dataclass

import pytest
import torch
from federation import Network, Processes, config, federate, folder_of, ledger_of, resumed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.base.errors import SnapshotError
from shared.base.files import write_atomically
from shared.protocol.entry import Entry
from shared.replica.replica import Replica
from shared.replica.snapshot import encode_snapshot, load_snapshot_, snapshot_position
from shared.training.oracle import Oracle

RUN, OTHER = b"r" * 16, b"o" * 16
OPTIMIZERS = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "adam", "learning_rate": 1e-3},
    {"optimizer": "mudamw", "learning_rate": 1e-3},
]


def contents(replica):
    """Copies of all that a replica is."""
    state = {name: tensor.clone() for name, tensor in replica.optimizer.state().items()}
    return replica.round, replica.model.flat.clone(), state


def same(one, other):
    return (
        one[0] == other[0]
        and torch.equal(one[1], other[1])
        and one[2].keys() == other[2].keys()
        and all(torch.equal(value, other[2][name]) for name, value in one[2].items())
    )


def fresh(chosen):
    return Oracle.of(chosen).replica


@dataclass
class Sample:
    """A snapshot, the contents of its replica, and the replica that it is loaded into."""

    data: bytes
    contents: tuple
    target: Replica


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    chosen = config(tmp_path_factory.mktemp("sample"), scope="regex:ln_f", **OPTIMIZERS[2])
    entries = federate(chosen).entries
    replica = fresh(chosen)
    replica.apply(map(Entry.decode, entries))
    return Sample(encode_snapshot(replica, RUN), contents(replica), fresh(chosen))


@pytest.mark.parametrize("changes", OPTIMIZERS, ids=str)
def test_a_snapshot_gives_back_parameters_round_and_optimizer(tmp_path, changes):
    chosen = config(tmp_path, num_rounds=4, **changes)
    entries = [Entry.decode(data) for data in federate(chosen).entries]
    whole, restored = fresh(chosen), fresh(chosen)
    whole.apply(entries[:2])
    load_snapshot_(restored, encode_snapshot(whole, RUN), RUN)
    assert same(contents(restored), contents(whole))
    for replica in (whole, restored):
        replica.apply(entries[2:])
    assert same(contents(restored), contents(whole))


def refuse(sample, data, match, run=RUN, target=None):
    replica = target or sample.target
    before = contents(replica)
    with pytest.raises(SnapshotError, match=rf"the file: .*{match}"):
        load_snapshot_(replica, data, run, "the file")
    assert same(contents(replica), before)


def test_a_snapshot_of_another_run_is_refused(sample):
    refuse(sample, sample.data, "a snapshot of run 6f6f", run=OTHER)


@pytest.mark.parametrize("changes", [{}, {"scope": "regex:ln_f"}], ids=["model", "optimizer"])
def test_a_snapshot_of_another_model_or_optimizer_is_refused(sample, tmp_path, changes):
    refuse(sample, sample.data, "expected, got", target=fresh(config(tmp_path, **changes)))


def test_a_truncated_snapshot_is_refused_at_any_length(sample):
    for length in {*range(0, len(sample.data), 997), *range(600), len(sample.data) - 1}:
        refuse(sample, sample.data[:length], "")


def test_a_longer_snapshot_is_refused(sample):
    refuse(sample, sample.data + b"\0", "")


def test_every_flipped_bit_of_the_header_is_detected_or_harmless(sample):
    """Header and tensors are bound: also another round, name, shape or type must not pass."""
    size = 8 + int.from_bytes(sample.data[:8], "little")
    before, harmless = contents(sample.target), 0
    for bit in range(8 * size):
        data = bytearray(sample.data)
        data[bit // 8] ^= 1 << bit % 8
        try:
            load_snapshot_(sample.target, bytes(data), RUN)
        except SnapshotError:
            assert same(contents(sample.target), before)
            continue
        harmless += 1
        assert same(contents(sample.target), sample.contents)
        load_snapshot_(sample.target, encode(before, sample), RUN)
    assert harmless < 8 * size / 50  # white space of the JSON


def encode(before, sample):
    """A snapshot of what the target was at first."""
    round_, flat, state = before
    sample.target.model.flat.copy_(flat)
    sample.target.optimizer.load_state(state)
    sample.target.set_round(round_)
    return encode_snapshot(sample.target, RUN)


@given(st.data())
@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_other_bytes_among_the_tensors_are_detected(sample, data):
    size = 8 + int.from_bytes(sample.data[:8], "little")
    damaged = bytearray(sample.data)
    damaged[data.draw(st.integers(size, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    refuse(sample, bytes(damaged), "damaged, its digests do not fit its tensors")


@given(st.binary(max_size=300))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_that_are_no_snapshot_are_refused(sample, data):
    refuse(sample, data, "")
    refuse(sample, len(data).to_bytes(8, "little") + data, "")


def test_the_header_alone_says_round_and_run(sample, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(sample.data)
    assert snapshot_position(path) == (3, RUN)
    path.write_bytes(sample.data[:50])
    with pytest.raises(SnapshotError, match=r"x\.safetensors: not a snapshot"):
        snapshot_position(path)


class Stopped(BaseException):
    """Stands for a process that ends here."""


@pytest.mark.parametrize("step", ["open", "fsync", "replace", "close"])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, step):
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"old")

    def stop(*_):
        raise Stopped

    with monkeypatch.context() as patch:
        if step == "replace":
            patch.setattr("pathlib.Path.replace", stop)
        else:
            patch.setattr(f"os.{step}", stop) if step != "open" else patch.setattr(os, "open", stop)
        with pytest.raises(Stopped):
            write_atomically(path, b"new and longer")
    assert path.read_bytes() == (b"old" if step in ("fsync", "replace") else b"new and longer")
    write_atomically(path, b"last")
    assert path.read_bytes() == b"last"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_drafts_of_a_dead_process_are_deleted(tmp_path):
    path, living = tmp_path / "file", tmp_path / f".file.{os.getppid()}"
    for left in (tmp_path / ".file.999999999", living, tmp_path / ".file.note"):
        left.write_bytes(b"draft")
    write_atomically(path, b"new")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(
        [".file.note", living.name, "file"]
    )


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[:-5])
    elif how == "other":
        path.write_bytes(path.with_name("round-000002.safetensors").read_bytes())
    else:
        data[-40] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "mode"), [(how, "zo") for how in ("gone", "cut", "flipped", "other")] + [("cut", "fo")]
)
def test_a_damaged_snapshot_is_named_and_the_run_is_resumed_without_it(tmp_path, caplog, how, mode):
    """Gradients are kept until there are two later snapshots, so that one may be lost."""
    changes = {"mode": mode, "snapshot_interval": 2, "optimizer": "adam", "learning_rate": 1e-3}
    expected = federate(config(tmp_path, "expected", num_rounds=6, **changes)).digest
    chosen = config(tmp_path, num_rounds=5, **changes)
    federate(chosen)
    damage(folder_of(chosen) / "snapshots" / "round-000004.safetensors", how)
    outcome = federate(resumed(chosen, num_rounds=6))
    assert outcome.digest == expected
    assert "round-000004.safetensors" in caplog.text
    assert [row[0] for row in outcome.rows["snapshots"]] == [2, 6]  # that of round 4 is forgotten


@pytest.mark.parametrize("how", ["gone", "cut", "flipped", "other"])
def test_a_newcomer_is_served_without_the_damaged_snapshot(tmp_path, caplog, how):
    changes = {"snapshot_interval": 2, "catch_up": "snapshot", "num_rounds": 5}
    chosen, nodes = config(tmp_path, **changes), Processes()

    def on_round(run, round_):
        if round_ == 4:
            damage(run.folder / "snapshots" / "round-000004.safetensors", how)
            nodes.memories.clear()

    outcome = federate(chosen, Network(chosen, nodes), on_round)
    assert outcome.digest == federate(config(tmp_path, "expected", **changes)).digest
    assert "round-000004.safetensors" in caplog.text
    assert not outcome.summary["refusals"]
    kinds = [row[4] for row in outcome.rows["traffic"] if row[1:4] == (5, "1", "down")]
    assert kinds in (["snapshot", "snapshot"], ["scalars", "snapshot"])


def test_a_snapshot_is_only_named_when_its_file_is_whole(tmp_path, monkeypatch):
    chosen = config(tmp_path, snapshot_interval=2, num_rounds=2)

    def stop(path, target):
        if path.parent.name == "snapshots":
            raise Stopped
        return os.replace(path, target)  # other files of a run are written in the same way

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", stop)
        patch.setattr(
            "server.ledger.run_folder.write_atomically", lambda path, data: path.write_bytes(data)
        )
        with pytest.raises(Stopped):
            federate(chosen)
    with ledger_of(chosen) as ledger:
        assert ledger.last_round == 2
        assert not ledger.snapshots()
    assert [row[0] for row in federate(resumed(chosen)).rows["snapshots"]] == [2]
