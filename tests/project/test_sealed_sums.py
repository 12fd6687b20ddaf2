"""The guide to sealed sums (sealed-sums.md), with its settings: four hospitals, four secrets."""

from pathlib import Path

import grpc
import pytest
from federation import Network, federate, ledger_of
from sealed_nodes import NAMES, make_notes, typed_settings, write_roster
from small_config import small_config

from client.guard.process import Guard
from client.privacy.node_policy import refuse
from client.sealed.sealed_site import SealedSite
from client.site.node_config import NodeConfig
from client.site.replica_host import _hosts
from dandelion.api.ledgers import verify_ledger
from shared.base.errors import StalledError

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "sealed-sums.md"


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """The configs of four hospitals with own data, own secrets, and a roster that they brought."""
    pytest.importorskip("dp_accounting")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("server.rounds.sums.PATIENCE_S", 0.05)
    _hosts.clear()
    homes = {name: tmp_path / name for name in NAMES}
    roster = write_roster(tmp_path / "roster.toml", homes)
    configs = []
    for name in NAMES:
        own = typed_settings(PAGE, "dandelion client join") | {"site": name}
        own |= {"data": str(make_notes(tmp_path / f"data-{name}")), "roster": str(roster)}
        own |= {"privacy-home": str(homes[name] / "privacy")}
        NodeConfig.of(own)
        configs.append(own)
    yield configs
    _hosts.clear()


def run(folder, nodes, name="run", **changes):
    """Train with the page's settings."""
    own = typed_settings(PAGE, "dandelion server run") | {"num-rounds": 2, "round-timeout": 0.3}
    config = small_config(folder, name, **{**own, "max-samples": 0, **changes})
    network = Network(config)
    for context, node in zip(network._contexts.values(), nodes, strict=True):
        context.node_config.clear()
        context.node_config.update(node)
    return config, federate(config, network)


@pytest.mark.slow
def test_four_hospitals_train_on_sums_alone(tmp_path, nodes):
    config, result = run(tmp_path, nodes)
    assert result.rows["refusals"] == []
    assert {row[6] for row in result.rows["contributions"]} == {b""}
    with ledger_of(config) as ledger:
        assert verify_ledger(ledger).sums == 2
        assert {row.needed for row in ledger.sum_rows(1)} == {3}


@pytest.fixture
def misread(tmp_path, nodes):
    """The fourth hospital has read a line too much."""
    other = tmp_path / "other.toml"
    other.write_text((tmp_path / "roster.toml").read_text() + f'\n"ward-9" = "{"ab" * 32}"\n')
    nodes[3]["roster"] = str(other)
    return nodes


def test_a_hospital_with_another_roster_is_named_before_the_first_round(tmp_path, misread):
    with pytest.raises(StalledError, match="other roster"):
        run(tmp_path, misread)


def test_a_hospital_with_another_roster_measures_nothing(tmp_path, misread):
    """Three suffice here: its data pay for nothing, and the others train."""
    _, result = run(tmp_path, misread, min_sites=3)
    assert len(result.entries) == 2
    refused = {(row[2], row[3]): row[4] for row in result.rows["refusals"]}
    assert refused["ward-4", "introduction"] == "other roster than 3 of 4 sites have"
    assert {reason for _, reason in refused} == {"introduction", "no sum"}  # it is a member
    assert {row[2] for row in result.rows["contributions"]} == set(NAMES[:3])
    assert {row[2] for row in result.rows["traffic"] if row[4] == "scalars"} == set(NAMES[:3])


def test_without_rosters_nothing_is_sent(tmp_path, nodes, caplog):
    for node in nodes:
        del node["roster"]
    with pytest.raises(StalledError, match="refused by policy: roster"):
        run(tmp_path, nodes)
    assert "has data of its own: sealed sums need a roster" in caplog.text


def test_a_run_without_sealed_sums_is_refused(tmp_path, nodes):
    with pytest.raises(StalledError, match="refused by policy: privacy"):
        run(tmp_path, nodes, privacy="local", privacy_committee=0)


class RefusedCall(grpc.RpcError):
    """What a relay sees of a guard's error."""

    def __init__(self, reason):
        super().__init__(reason)
        self.reason = reason

    def code(self):
        return grpc.StatusCode.ABORTED

    def details(self):
        return self.reason


@pytest.fixture
def guarded(nodes, monkeypatch):
    """The configs that code of the run sees: sockets, behind which guards have those of nodes."""
    guards = {f"unix:/run/{node['site']}.sock": Guard(node, 60.0) for node in nodes}

    def send_call(address, call, frame, timeout_s):
        try:
            return guards[address].answer(frame)
        except Exception as error:  # the process boundary, as in the guard itself
            raise RefusedCall(guards[address].reason(error)) from error

    monkeypatch.setattr("client.guard.relay.send_call", send_call)
    monkeypatch.setattr("server.ledger.run_folder.secrets.token_bytes", lambda count: b"r" * count)
    return [{"guard": address.removeprefix("unix:")} for address in guards]


def test_sums_ride_through_guards_with_the_same_bits(tmp_path, nodes, guarded, monkeypatch):
    """The code of the run relays bytes; a refusal comes back by the name of its key."""
    _, expected = run(tmp_path, nodes, "open", staleness=1)
    real = SealedSite.add_up

    def add_up(self, request):
        if self.identity.site.name == "ward-2":
            refuse("one-cohort", "in this test")
        return real(self, request)

    monkeypatch.setattr(SealedSite, "add_up", add_up)
    _, result = run(tmp_path, guarded, "guarded", staleness=1)
    assert (result.digest, result.entries) == (expected.digest, expected.entries)
    refused = {(row[2], row[3], row[4]) for row in result.rows["refusals"]}
    assert refused == {("ward-2", "error", "PolicyError: refused by policy: one-cohort")}
