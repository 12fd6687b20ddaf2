"""A site's own disk saves the server bytes, and never decides what the site's bits are."""

import pytest
import torch
from federation import Network, Processes, config, federate, folder_of, resumed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.site.replica_store import ReplicaStore
from shared.protocol.entry import Entry
from shared.training.oracle import Oracle

RUN, OTHER = b"r" * 16, b"o" * 16
REQUEST, ENTRY = 72, 40  # bytes of a request without entries, and of each entry of two queries
flips = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def stored(config, nodes, folder):
    """A network whose sites each have a store."""
    network = Network(config, nodes)
    for node_id, context in network._contexts.items():
        context.node_config["store"] = str(folder / f"node-{node_id}")
    return network


def sent_to(result, site, round_):
    return [
        row[5] for row in result.rows["traffic"] if row[1:5] == (round_, site, "down", "scalars")
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A replica at round 3 and its store."""
    folder = tmp_path_factory.mktemp("trained")
    chosen = config(folder)
    replica = Oracle.of(chosen).replica
    replica.apply(map(Entry.decode, federate(chosen).entries))
    store = ReplicaStore(folder)
    store.save(replica, RUN)
    return replica, store.path.read_bytes(), Oracle.of(chosen).replica


def loaded(trained, folder, data, run=RUN):
    """Whether a fresh replica took ``data`` over; else it must be as it was."""
    replica, _, target = trained
    store, base = ReplicaStore(folder), target.model.flat.clone()
    store.path.write_bytes(data)
    try:
        if store.load_(target, run):
            assert target.round == 3
            assert torch.equal(target.model.flat, replica.model.flat)
            return True
        assert target.round == 0
        assert torch.equal(target.model.flat, base)
        return False
    finally:
        target.model.flat.copy_(base)
        target.set_round(0)


def test_a_store_gives_back_what_was_saved(trained, tmp_path):
    assert loaded(trained, tmp_path, trained[1])
    assert ReplicaStore(tmp_path).read_position() == (3, RUN)


def test_without_a_file_a_store_is_empty(trained, tmp_path):
    store = ReplicaStore(tmp_path / "none")
    assert store.read_position() == (0, b"")
    assert not store.load_(trained[2], RUN)


def test_a_store_of_another_run_is_not_used(trained, tmp_path, caplog):
    assert not loaded(trained, tmp_path, trained[1], run=OTHER)
    assert f"{tmp_path / 'replica.safetensors'}: a snapshot of run" in caplog.text


@pytest.mark.parametrize("length", [0, 7, 8, 100, 1000, -1])
def test_a_truncated_store_is_named_and_not_used(trained, tmp_path, caplog, length):
    assert not loaded(trained, tmp_path, trained[1][:length])
    assert str(tmp_path / "replica.safetensors") in caplog.text
    if length < 1000:
        assert ReplicaStore(tmp_path).read_position()[0] in (0, 3)


@given(st.data())
@flips
def test_a_store_with_a_flipped_bit_is_not_used_or_harmless(trained, tmp_path, data):
    content = bytearray(trained[1])
    last = data.draw(st.sampled_from([300, len(content) - 1]))  # the header, or anywhere
    content[data.draw(st.integers(0, last))] ^= 1 << data.draw(st.integers(0, 7))
    taken = loaded(trained, tmp_path, bytes(content))
    assert not taken or ReplicaStore(tmp_path).read_position() == (3, RUN)


def test_a_process_that_starts_again_is_sent_what_its_store_lacks(tmp_path):
    chosen, nodes = config(tmp_path, num_rounds=6), Processes()
    network = stored(chosen, nodes, tmp_path)
    result = federate(
        chosen, network, lambda run, round_: nodes.memories.clear() if round_ == 4 else None
    )
    assert result.digest == federate(config(tmp_path, "expected", num_rounds=6)).digest
    assert sent_to(result, "1", 5) == [REQUEST + ENTRY]
    assert not result.summary["refusals"]


def test_all_processes_may_start_again_and_say_where_they_are(tmp_path):
    chosen = config(tmp_path, num_rounds=4)
    federate(chosen, stored(chosen, Processes(), tmp_path))
    chosen = resumed(chosen, num_rounds=6)
    result = federate(chosen, stored(chosen, Processes(), tmp_path))
    assert result.digest == federate(config(tmp_path, "expected", num_rounds=6)).digest
    assert sent_to(result, "1", 5) == [REQUEST + ENTRY]  # its replica was at round 3


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[-9:]
    elif how == "body":
        data[-100] ^= 4
    elif how == "round":  # the header now says that it is at another round
        place = data.index(b'"round":"') + len(b'"round":"')
        data[place] ^= 1
    else:
        data[:8] = b"\xff" * 8
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["cut", "body", "round", "head"])
def test_a_damaged_store_is_named_and_rebuilt_from_the_server(tmp_path, caplog, how):
    chosen = config(tmp_path, num_rounds=4)
    federate(chosen, stored(chosen, Processes(), tmp_path))
    path = tmp_path / "node-3" / "replica.safetensors"
    damage(path, how)
    chosen, nodes = resumed(chosen, num_rounds=6), Processes()
    result = federate(chosen, stored(chosen, nodes, tmp_path))
    assert result.digest == federate(config(tmp_path, "expected", num_rounds=6)).digest
    assert f"{path}: " in caplog.text
    assert not result.summary["refusals"]
    assert ReplicaStore(path.parent).read_position() == (5, bytes.fromhex(run_name(result)))


def run_name(result):
    from federation import ledger_of

    with ledger_of(result.config) as ledger:
        return ledger.header("run").hex()


def test_a_store_of_an_earlier_run_is_replaced(tmp_path):
    first, second = config(tmp_path, "first", seed=2), config(tmp_path, "second")
    federate(first, stored(first, Processes(), tmp_path))
    result = federate(second, stored(second, Processes(), tmp_path))
    assert result.digest == federate(config(tmp_path, "expected")).digest
    stores = [ReplicaStore(tmp_path / f"node-{n}").read_position() for n in (2, 3, 4)]
    assert stores == [(2, bytes.fromhex(run_name(result)))] * 3


def test_a_host_that_follows_a_run_drops_it_for_another(tmp_path):
    """One configuration, two runs of it: the memory of the first must not leak into the second."""
    nodes = Processes()
    for name in ("one", "two"):
        chosen = config(tmp_path, name, run_name="", output_dir=str(tmp_path / name))
        network = Network(chosen, nodes)
        for context in network._contexts.values():
            context.run_config.pop("output-dir")
        result = federate(chosen, network)
        assert not result.summary["refusals"]
        assert result.digest == federate(config(tmp_path, f"expected {name}")).digest
    assert len(nodes.memories[2]) == 1
    assert folder_of(chosen).parent == tmp_path / "two"
