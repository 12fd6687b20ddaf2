"""Runs with sealed sums: the plain sum to the bit, and every row of the table of faults."""

import random
import sqlite3
from contextlib import closing

import numpy as np
import pytest
import torch
from federation import Network, federate, folder_of, ledger_of, replayed, resumed, select
from hazards import Chaos, Crash, Cut, crash_at, cut_at, go_on
from sealed_federation import (  # noqa: F401  (fixtures)
    Silence,
    is_sum,
    lie,
    payload_of,
    plain_steps,
    sealed_config,
    sealed_home,
)

from client.privacy.budget import BudgetLedger
from client.site.replica_host import _hosts
from dandelion.api.ledgers import verify_ledger
from dandelion.settings.gather import gather
from server.ledger.ledger import Ledger
from server.rounds import sums as sums_module
from server.sealed.sums import OpenedSums
from shared.base.errors import LedgerError
from shared.privacy.grid import from_grid
from shared.protocol.frames import magic_of
from shared.protocol.messages import decode_reply
from shared.protocol.sealed_messages import (
    MAGIC_SEALED,
    MAGIC_SUM_REPLY,
    Sealed,
    decode_sum_request,
    is_sum_request,
)
from shared.training.validate import configure


def spent(home):
    """How many answers each data set has paid for."""
    with closing(BudgetLedger(home)) as budget:
        return [sum(each.times for each in budget.spent(data.id)) for data in budget.sets()]


def reasons(result):
    return [(row[2], row[3]) for row in result.rows["refusals"]]


@pytest.mark.parametrize("settings", [{}, {"sites": 5, "privacy_committee": 3}, {"staleness": 1}])
def test_the_entry_is_made_of_the_plain_sum_to_the_bit(tmp_path, plain_steps, settings):
    config = sealed_config(tmp_path, estimator="two-point", **settings)
    result = federate(config)
    clip = config.privacy.clip_of_differences(config.zo.eps, config.zo.queries)
    sites = config.federation.num_clients
    with ledger_of(config) as ledger:
        for round_ in (1, 2):
            steps = [v for (r, _, _), v in plain_steps.items() if r == round_]
            assert len(steps) == sites
            plain = from_grid(np.sum(steps, axis=0), clip, config.zo.batch_size * sites)
            assert ledger.entry(round_).slots[0].differences.tobytes() == plain.tobytes()
        assert torch.equal(replayed(config, ledger, 2), result.flat)
    assert result.rows["refusals"] == []


def test_a_run_on_plain_sums_has_the_same_digest(tmp_path, plain_steps, monkeypatch):
    """The same numbers, added up in the open, give the same parameters."""
    sealed = federate(sealed_config(tmp_path, "sealed"))

    def add_plainly(rows, parts):
        here = [v for (r, a, _), v in plain_steps.items() if (r, a) == rows[0][:2]]
        return OpenedSums(np.sum(here, axis=0)[None], ())

    monkeypatch.setattr(sums_module, "open_sums", add_plainly)
    plain = federate(sealed_config(tmp_path, "plain"))
    assert (plain.digest, plain.entries) == (sealed.digest, sealed.entries)


def test_nothing_of_one_site_is_sent_or_kept(tmp_path):
    config = sealed_config(tmp_path)
    network = Network(config)
    result = federate(config, network)
    payloads = [payload_of(m) for m in network.received if m.metadata.message_type == "train"]
    replies = [decode_reply(p) for p in payloads if magic_of(p) != MAGIC_SUM_REPLY]
    assert len(replies) == 6
    assert all(isinstance(reply, Sealed) for reply in replies)
    assert len(payloads) == 12  # and each of the three members' sums
    rows = result.rows["contributions"]
    assert [row[:3] for row in rows] == [(r, s + 1, str(s)) for r in (1, 2) for s in range(3)]
    assert {(row[3], *row[4:]) for row in rows} == {(config.zo.batch_size, None, 0.0, b"", b"")}
    with ledger_of(config) as ledger:
        cohorts = select(ledger, "SELECT round, attempt, slot, part FROM cohorts")
        sums = select(ledger, "SELECT round, attempt, member, needed FROM sums")
    assert cohorts == [(r, 0, s, 0) for r in (1, 2) for s in (1, 2, 3)]
    assert sums == [(r, 0, s, 3) for r in (1, 2) for s in (1, 2, 3)]


def test_a_dropped_sender_is_in_no_sum_and_its_late_reply_is_refused(tmp_path, plain_steps):
    config = sealed_config(tmp_path, sites=5, estimator="two-point")
    network = Chaos(config, lost={(1, 4)}, order=random.Random(1))
    result = federate(config, network)
    with ledger_of(config) as ledger:
        assert [row.slot for row in ledger.cohort_rows(1, 0)] == [1, 2, 3, 4]
        assert [row.slot for row in ledger.cohort_rows(2, 0)] == [1, 2, 3, 4, 5]
        clip = config.privacy.clip_of_differences(config.zo.eps, config.zo.queries)
        steps = [plain_steps[1, 0, slot] for slot in (1, 2, 3, 4)]
        plain = from_grid(np.sum(steps, axis=0), clip, 4 * config.zo.batch_size)
        assert ledger.entry(1).slots[0].differences.tobytes() == plain.tobytes()
    assert ("node 6", "not asked") in reasons(result)


def test_order_and_duplicates_do_not_matter(tmp_path):
    expected = federate(sealed_config(tmp_path, "whole", sites=4))
    for seed in (1, 2):
        config = sealed_config(tmp_path, f"shuffled {seed}", sites=4)
        result = federate(config, Chaos(config, lost=set(), order=random.Random(seed)))
        assert (result.digest, result.entries) == (expected.digest, expected.entries)


def test_a_member_may_be_away_and_the_sum_is_the_same(tmp_path):
    expected = federate(sealed_config(tmp_path, "whole", sites=5))
    config = sealed_config(tmp_path, "one away", sites=5)
    result = federate(config, Silence(config, silent={2}))
    assert (result.digest, result.entries) == (expected.digest, expected.entries)
    with ledger_of(config) as ledger:
        assert [row.member for row in ledger.sum_rows(1)] == [1, 2, 4, 5]


def test_too_few_members_cost_an_attempt_with_fresh_noise_and_both_are_paid_for(
    tmp_path, sealed_home, plain_steps
):  # fmt: skip
    config = sealed_config(tmp_path, sites=5, num_rounds=1)
    result = federate(config, Silence(config, silent={1, 2}, attempts=(0,)))
    assert [row[1:] for row in result.rows["skips"]] == [(1, "3 of 4 members added up")]
    assert len(result.entries) == 1
    for slot in range(1, 6):
        assert plain_steps[1, 0, slot].tolist() != plain_steps[1, 1, slot].tolist()
    assert spent(sealed_home) == [2] * 5
    with ledger_of(config) as ledger:
        assert {row.attempt for row in ledger.sum_rows(1)} == {1}
        assert len(ledger.cohort_rows(1, 0)) == 5


def test_a_lying_member_is_corrected_and_named(tmp_path):
    expected = federate(sealed_config(tmp_path, "honest", sites=9, num_rounds=1))
    config = sealed_config(tmp_path, "lied to", sites=9, num_rounds=1)
    network = Network(config, change=lambda m: [lie(m) if is_sum(m, 3) else m])
    result = federate(config, network)
    assert (result.digest, result.entries) == (expected.digest, expected.entries)
    assert reasons(result) == [("3", "wrong sum")]


def test_more_liars_than_can_be_told_give_no_entry(tmp_path):
    config = sealed_config(tmp_path, sites=5, num_rounds=1)
    lied = []

    def change(message):
        if is_sum(message, 1) and not lied:
            lied.append(message)
            return [lie(message)]
        return [message]

    result = federate(config, Network(config, change=change))
    assert "do not agree: at most 0 wrong ones can be told" in result.rows["skips"][0][2]
    assert len(result.entries) == 1


def test_sums_of_another_form_are_refused(tmp_path):
    config = sealed_config(tmp_path, sites=5, num_rounds=1)
    network = Network(config, change=lambda m: [lie(m, 7 << 61) if is_sum(m, 1) else m])
    result = federate(config, network)
    assert reasons(result) == [("1", "wrong sum")]
    assert "numbers below 2^61 - 1 expected" in result.rows["refusals"][0][4]


def without_boxes_of(node_id):
    """A change of replies: the boxes of one node are lost, its sums are not."""
    lost = MAGIC_SEALED.to_bytes(2, "little")

    def change(message):
        is_lost = message.metadata.src_node_id == node_id and payload_of(message)[:2] == lost
        return [] if is_lost else [message]

    return change


def test_a_server_that_is_killed_between_the_steps_goes_on_with_the_same_cohort(tmp_path):
    """The cohort is committed, then the server dies. Who was late is in no second cohort."""
    config = sealed_config(tmp_path, "killed", sites=4, num_rounds=1)

    class Killed(Network):
        def push_messages(self, messages):
            listed = list(messages)
            if any(is_sum_request(payload_of(message)) for message in listed):
                raise Cut
            return super().push_messages(listed)

    with pytest.raises(Cut):
        federate(config, Killed(config, change=without_boxes_of(5)))
    with ledger_of(config) as ledger:
        before = ledger.cohort_rows(1, 0)
        assert [row.slot for row in before] == [1, 2, 3]
        assert ledger.last_round == 0
    _hosts.clear()  # and all sites are started again
    result = federate(resumed(config))
    with ledger_of(config) as ledger:
        assert ledger.cohort_rows(1, 0) == before
        assert [row.slot for row in ledger.contributions(1)] == [1, 2, 3]
    never_there = sealed_config(tmp_path, "never there", sites=4, num_rounds=1)
    expected = federate(never_there, Network(never_there, change=without_boxes_of(5)))
    assert (result.digest, result.entries) == (expected.digest, expected.entries)


def test_a_run_that_is_resumed_by_its_folder_goes_on_with_the_same_cohort(tmp_path, sealed_home):
    """As ``--resume`` does: its record names the estimator that ``auto`` stood for."""
    config = sealed_config(tmp_path, num_rounds=2)
    with pytest.raises(Crash), crash_at_first_sums():
        federate(config)
    folder = folder_of(config)
    recorded = gather(None, [], folder).to_run_config() | {"resume": str(folder)}
    assert (config.zo.estimator, recorded["estimator"]) == ("auto", "forward")
    _hosts.clear()
    result = federate(configure(recorded))
    assert result.rows["skips"] == []
    assert spent(sealed_home) == [2, 2, 2]  # nothing was measured anew


def test_a_site_of_the_cohort_that_is_gone_costs_an_attempt(tmp_path):
    config = sealed_config(tmp_path, sites=4, num_rounds=1)
    with pytest.raises(Crash), crash_at_first_sums():
        federate(config)
    result = federate(resumed(config), Network(config, change=without_boxes_of(5)))
    assert [row[2] for row in result.rows["skips"]] == [
        "site 3 of its cohort has not sent the same boxes again"
    ]
    with ledger_of(config) as ledger:
        assert [row.slot for row in ledger.cohort_rows(1, 1)] == [1, 2, 3]


def crash_at_first_sums():
    """Crash as the sums are opened: the members have answered, and no entry is there."""
    patch = pytest.MonkeyPatch.context()

    class Context:
        def __enter__(self):
            def die(rows, parts):
                raise Crash

            patch.__enter__().setattr(sums_module, "open_sums", die)

        def __exit__(self, *error):
            patch.__exit__(*error)

    return Context()


@pytest.mark.parametrize("staleness", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_crash_at_any_write_changes_nothing(tmp_path, staleness):
    changes = {"num_rounds": 2, "queries": 1, "zo_batch_size": 1, "staleness": staleness}
    expected = federate(sealed_config(tmp_path, "whole", **changes))  # its sites have paid
    with crash_at(None) as written:
        federate(sealed_config(tmp_path, "counted", **changes))
    numbers = range(30, len(written) + 1, 1 if staleness else 3)
    assert len(numbers) > 10
    for number in numbers:
        config = sealed_config(tmp_path, f"crash {number}", **changes)
        with pytest.raises(Crash), crash_at(number):
            federate(config)
        result = go_on(config)
        assert (result.digest, result.entries) == (expected.digest, expected.entries)


def test_sites_that_are_started_again_in_every_round_send_the_same(tmp_path, sealed_home):
    expected = federate(sealed_config(tmp_path, "whole"))
    assert spent(sealed_home) == [2, 2, 2]
    config = sealed_config(tmp_path, "restarted")

    class Forgetful(Network):
        def _deliver(self, message):
            _hosts.clear()
            return super()._deliver(message)

    result = federate(config, Forgetful(config))
    assert (result.digest, result.entries) == (expected.digest, expected.entries)


def test_a_run_that_is_cut_off_and_resumed_is_the_same(tmp_path):
    expected = federate(sealed_config(tmp_path, "whole", num_rounds=3))
    config = sealed_config(tmp_path, "cut", num_rounds=3)
    with pytest.raises(Cut):
        federate(config, on_round=cut_at(2))
    assert federate(resumed(config)).digest == expected.digest


def test_a_cohort_below_the_members_least_is_refused_by_name(tmp_path):
    """Two of four sites reply: no member adds up two, and the round is tried again."""
    config = sealed_config(tmp_path, sites=4, num_rounds=1)
    lost = {(1, 2), (1, 3)}

    class Once(Chaos):
        def pull_messages(self, message_ids):
            if self.received and any(is_sum(m) or m.has_error() for m in self.received):
                self.lost = set()
            return super().pull_messages(message_ids)

    result = federate(config, Once(config, lost))
    assert [row[2] for row in result.rows["skips"]] == ["0 of 3 members added up"]
    details = {row[4] for row in result.rows["refusals"] if row[3] == "error"}
    assert details == {"PolicyError: refused by policy: min-cohort"}
    assert len(result.entries) == 1


@pytest.mark.parametrize("table", ["sums", "cohorts"])
def test_a_changed_sum_or_cohort_does_not_fit_the_chain(tmp_path, table):
    config = sealed_config(tmp_path, num_rounds=1)
    federate(config)
    column = {"sums": '"values"', "cohorts": "request"}[table]
    with closing(sqlite3.connect(folder_of(config) / "ledger.sqlite")) as connection:
        connection.execute(f"UPDATE {table} SET {column} = zeroblob(16) WHERE round = 1")
        connection.commit()
    with pytest.raises(LedgerError, match="table entries, row 1: does not fit its chain"):
        Ledger.open(folder_of(config) / "ledger.sqlite")


def test_requests_for_sums_hold_the_cohort_and_boxes_alone(tmp_path):
    config = sealed_config(tmp_path, num_rounds=1)
    network = Silence(config, silent=())
    federate(config, network)
    assert len(network.sum_requests) == 3
    for _, payload in network.sum_requests:
        request = decode_sum_request(payload)
        assert [site.slot for site in request.cohort] == [1, 2, 3]
        assert len(payload) == 72 + 3 * (56 + 8 * config.zo.queries)


def test_a_verified_ledger_interpolates_again(tmp_path):
    config = sealed_config(tmp_path)
    federate(config)
    with ledger_of(config) as ledger:
        assert verify_ledger(ledger).sums == 2
        rows = ledger.sum_rows(2)
        wrong = rows[0]._replace(values=rows[0].values[::-1])
        ledger.sum_rows = lambda round_: [wrong, *rows[1:]]
        with pytest.raises(LedgerError, match=r"table sums, round 1: the entry has other numbers"):
            verify_ledger(ledger)
        ledger.sum_rows = lambda round_: []
        with pytest.raises(LedgerError, match="round 1: the sums of its committee are missing"):
            verify_ledger(ledger)
