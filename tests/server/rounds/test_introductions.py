"""Who takes part: sites introduce themselves, are waited for, and are refused with a reason."""

import logging
from contextlib import closing
from dataclasses import replace

import pytest
from federation import Network, config, federate, folder_of, ledger_of, with_payload
from flwr.app import MessageType

from server.ledger.reader import LedgerReader
from server.rounds.cohort import Cohort, ExcludedNode
from server.rounds.round_log import RoundLog
from shared.base.errors import StalledError
from shared.protocol.flower_records import unpack
from shared.protocol.messages import decode_hello, encode_hello


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return federate(config(tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture
def log():
    return RoundLog(None)  # nothing of it is written here


def test_the_server_waits_for_enough_sites_and_says_how_many_are_there(tmp_path, caplog):
    caplog.set_level(logging.INFO, "dandelion")
    chosen = config(tmp_path, min_clients=4)
    with pytest.raises(StalledError, match="4 sites needed for round 1, 3 came within"):
        federate(chosen)
    assert "waiting for sites: 3 of 4 are there" in caplog.text


def test_a_site_that_comes_while_the_server_waits_is_met(tmp_path, undisturbed):
    chosen = config(tmp_path, min_clients=3, wait_timeout=2.0)

    class Growing(Network):
        looks = 0

        def get_node_ids(self):
            self.looks += 1
            return list(super().get_node_ids())[: self.looks]

    assert federate(chosen, Growing(chosen)).digest == undisturbed.digest


def introduced(**changes):
    """Change how site 1 introduces itself."""

    def change(reply):
        if reply.metadata.message_type != MessageType.QUERY or reply.metadata.src_node_id != 3:
            return [reply]
        hello = decode_hello(unpack(reply.content)[0])
        return [with_payload(reply, encode_hello(replace(hello, **changes)))]

    return change


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"code": "00" * 16}, "other source files: "),
        ({"base": "00" * 16}, "another base model: "),
        ({"site": "0"}, "site '0' is here already, as node 2"),
        ({"slot": 1}, "slot 1 is taken by site '0'"),
        ({"slot": 0}, "introduction: slot is '0'"),
        ({"site": "a\nb"}, "introduction: site is "),
        ({"round": -1}, "introduction: round is "),
    ],
    ids=str,
)
def test_a_site_that_cannot_take_part_is_refused_with_a_reason(tmp_path, caplog, changes, reason):
    chosen = config(tmp_path)
    result = federate(chosen, Network(chosen, change=introduced(**changes)))
    assert reason in caplog.text
    assert result.summary["clients"] == 2
    assert result.summary["refusals"] == {"introduction": 1}
    ((_, round_, _, _, detail),) = result.rows["refusals"]
    assert round_ == 1
    assert detail.startswith(reason)


@pytest.mark.parametrize("payload", [b"", b"[" * 3000, b"x" * 9999], ids=["empty", "deep", "long"])
def test_a_site_whose_introduction_cannot_be_read_is_refused(tmp_path, payload):
    chosen = config(tmp_path)

    def change(reply):
        garbled = reply.metadata.message_type == MessageType.QUERY
        return [with_payload(reply, payload)] if garbled and is_of(reply, 1) else [reply]

    result = federate(chosen, Network(chosen, change=change))
    assert (result.summary["clients"], result.summary["refusals"]) == (2, {"introduction": 1})


def is_of(reply, site):
    return reply.metadata.src_node_id == site + 2


def test_all_reasons_are_in_the_message_when_no_site_is_left(tmp_path):
    chosen = config(tmp_path, num_clients=2)
    broken = Network(chosen, client=lambda message, context: 1 / 0)
    reasons = r"\['could not introduce itself: ZeroDivisionError: division by zero', 'could not"
    with pytest.raises(StalledError, match=reasons):
        federate(chosen, broken)


def test_the_server_does_not_wait_for_nodes_that_are_refused_again_and_again(tmp_path, monkeypatch):
    """Three nodes are there, one of other source files: it is asked twice, not for an hour."""
    monkeypatch.setattr("server.rounds.cohort.ASK_AGAIN_S", 0.2)
    chosen = config(tmp_path, min_clients=3, wait_timeout=3600.0)
    network = Network(chosen, change=introduced(code="00" * 16))
    with pytest.raises(StalledError, match=r"2 came within .* s; refused: \['other source files"):
        federate(chosen, network)
    assert sum(m.metadata.dst_node_id == 3 for m in network.sent) == 2


def test_the_server_waits_for_a_node_that_may_still_come(tmp_path, monkeypatch):
    """Two nodes are there, one is refused: another two may come, as long as wait-timeout says."""
    monkeypatch.setattr("server.rounds.cohort.ASK_AGAIN_S", 0.05)
    chosen = config(tmp_path, min_clients=4, wait_timeout=0.5)
    with pytest.raises(StalledError, match=r"2 came within 0\.5 s"):
        federate(chosen, Network(chosen, change=introduced(code="00" * 16)))


def test_a_refused_node_is_asked_again_after_a_while_and_when_its_rival_is_gone(
    tmp_path, monkeypatch, log
):
    """A site that restarts has a new node id while Flower still lists the old one for a minute."""
    chosen = config(tmp_path)
    network, accepts = Network(chosen, change=introduced(site="0")), lambda hello: ""
    cohort = Cohort(chosen, accepts, b"r" * 16, log)
    cohort.meet(network, 1)
    assert sorted(cohort.sites) == ["0", "2"]
    assert list(cohort.excluded) == [3]
    cohort.meet(network, 1)
    assert len(network.sent) == 3  # not yet
    network._contexts.pop(2)
    monkeypatch.setattr("server.rounds.cohort.time.monotonic", lambda: 1e9)
    cohort.meet(network, 1)
    assert cohort.sites["0"].node_id == 3
    assert not cohort.excluded


def test_a_newcomer_that_takes_long_to_answer_delays_no_round(tmp_path, monkeypatch, log):
    chosen = config(tmp_path, round_timeout=900.0)
    withheld = []
    network = Network(chosen, change=lambda reply: [reply] if not is_of(reply, 1) else withheld)
    late, cohort = network._contexts.pop(3), Cohort(chosen, lambda hello: "", b"r" * 16, log)
    cohort.meet(network, 1)
    network._contexts[3] = late
    with monkeypatch.context() as patch:
        patch.setattr("server.rounds.exchange.time.sleep", lambda _: pytest.fail("it waits"))
        cohort.meet(network, 2)
    assert sorted(cohort.sites) == ["0", "2"]
    assert not log.refusals
    network.change = lambda reply: [reply]
    network.push_messages(message for message in network.sent if message.metadata.dst_node_id == 3)
    cohort._exchange._late = dict.fromkeys(network._inbox)  # its answer is there only now
    cohort._exchange._nodes |= dict.fromkeys(network._inbox, 3)
    cohort.meet(network, 3)
    assert sorted(cohort.sites) == ["0", "1", "2"]


def test_a_node_that_is_slow_to_introduce_itself_delays_one_round_and_is_met_later(tmp_path, log):
    chosen = config(tmp_path)
    withheld = []

    def change(reply):
        if reply.metadata.message_type == MessageType.QUERY and is_of(reply, 1):
            withheld.append(reply)
            return []
        return [reply]

    network = Network(chosen, change=change)
    cohort = Cohort(chosen, lambda hello: "", b"r" * 16, log)
    cohort.meet(network, 1)
    assert sorted(cohort.sites) == ["0", "2"]
    assert isinstance(cohort.excluded[3], ExcludedNode)
    network.change = lambda reply: [reply]
    cohort.meet(network, 2)
    assert len(network.sent) == 3  # nobody is asked twice
    network._inbox[withheld[0].metadata.reply_to_message_id] = withheld[0]
    cohort.meet(network, 3)
    assert sorted(cohort.sites) == ["0", "1", "2"]


def test_a_site_that_is_refused_is_in_the_ledger_by_name_while_the_server_waits(tmp_path):
    chosen = config(tmp_path, min_sites=3, wait_timeout=0.5)
    states = []

    class Watched(Network):
        def get_node_ids(self):
            with closing(LedgerReader.open(folder_of(chosen) / "ledger.sqlite")) as ledger:
                states.append({state.site: state.error for state in ledger.site_states()})
            return super().get_node_ids()

    with pytest.raises(StalledError):
        federate(chosen, Watched(chosen, change=introduced(base="0" * 32)))
    (error,) = {row["1"] for row in states if "1" in row}
    assert error.startswith("introduction in round 1: another base model: ")
    assert {*states[-1]} >= {"0", "1", "2"}


def test_a_site_that_was_met_and_is_silent_later_is_named_by_its_name(log):
    class Silent(Network):
        def pull_messages(self, message_ids):
            return []

    chosen = config("unused", round_timeout=0.01)
    cohort = Cohort(chosen, lambda hello: "", bytes(16), log)
    cohort._names[3] = "ward 3"
    cohort.meet(Silent(chosen), 1)
    assert {refusal.site for refusal in log.refusals} == {"node 2", "ward 3", "node 4"}


def test_many_sites_are_set_up_in_parts_and_it_is_said_how_far(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("server.rounds.cohort.ASKED_AT_ONCE", 2)
    monkeypatch.setattr("server.rounds.cohort.PROGRESS_S", 0.0)
    monkeypatch.setattr("server.run.MANY_SITES", 5)
    chosen = config(tmp_path, num_clients=5, num_rounds=1)
    federate(chosen)
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if text.startswith("setting up")] == [
        f"setting up: {count} of 5 sites" for count in (2, 4, 5)
    ]
    assert said[0].startswith("5 sites, all of them in each round: 15 forward passes")
    assert "40 B of numbers up a round" in said[0]
    monkeypatch.undo()
    other = config(tmp_path, "at once", num_clients=5, num_rounds=1)
    with ledger_of(chosen) as one:
        assert federate(other).digest == one.digest(1).hex()
