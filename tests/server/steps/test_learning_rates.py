"""Rates by a rule: a pure function of the ledger, whatever happens between its rounds."""

import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from federation import Network, altered, config, federate, folder_of, is_reply, ledger_of, resumed
from typer.testing import CliRunner

from dandelion.cli.app import app as cli
from dandelion.engines.local import contexts_of, merge_requests
from server.ledger.ledger import Ledger
from server.ledger.reader import LedgerReader
from server.ledger.records import OLDEST, VERSION
from server.ledger.run_folder import read_config
from server.steps.evidence import agreement_of, energy_of, predict_fall
from server.steps.learning_rates import LearningRates
from shared.base.errors import ConfigError, LedgerError
from shared.modes.step_rule import movement_of, rate_set, step_rule_of, why_plain
from shared.protocol.entry import Entry, SlotDifferences
from shared.protocol.flower_records import unpack
from shared.protocol.messages import decode_request

AUTO = {"step": "auto", "learning_rate": 0.0, "estimator": "forward", "queries": 4, "num_rounds": 6}
WHOLE = {"zo_batch_size": 0, "max_samples": 4}  # about a hundred blocks a site, in seven passes
RULES = [
    AUTO,
    {**AUTO, "estimator": "two-point"},
    {**AUTO, **WHOLE},
    {**AUTO, "staleness": 1},
    {**AUTO, "clients_per_round": 2},
    {**AUTO, "step": "normalised", "momentum": 0.5},
    {**AUTO, "step": "normalised", "seed_schedule": "independent", "local_steps": 2},
    {**AUTO, "step": "normalised", "local_steps": 2, "staleness": 1, "lr_schedule": "linear"},
]


def rates_of(outcome):
    return [Entry.decode(entry).learning_rate for entry in outcome.entries]


def comparisons(chosen):
    with sqlite3.connect(folder_of(chosen) / "ledger.sqlite") as connection:
        return connection.execute("SELECT * FROM comparisons ORDER BY round, slot").fetchall()


@pytest.mark.parametrize("changes", RULES, ids=str)
def test_a_run_that_was_resumed_has_the_same_rates(tmp_path, changes):
    whole = federate(config(tmp_path, "whole", **changes))
    assert len(set(rates_of(whole))) > 1
    assert all(rate > 0 for rate in rates_of(whole))
    halves = config(tmp_path, "halves", **{**changes, "num_rounds": 3})
    if halves.optimizer.schedule != "constant":
        halves = config(tmp_path, "halves", **changes)
        stop_after(halves, 3)
    else:
        federate(halves)
    again = federate(resumed(halves, num_rounds=6))
    assert again.entries == whole.entries
    assert again.digest == whole.digest


def stop_after(chosen, last):
    """Kill a run after a round, whatever follows its commit."""

    class Killed(BaseException):
        pass

    def kill(run, round_):
        if round_ == last:
            raise Killed

    with pytest.raises(Killed):
        federate(chosen, on_round=kill)


def test_requests_of_local_steps_carry_the_rate_that_the_entry_has(tmp_path):
    chosen = config(tmp_path, **{**AUTO, "step": "normalised", "local_steps": 2})
    grid = Network(chosen)
    rates = rates_of(federate(chosen, grid))
    told = {}
    for message in grid.sent:
        if message.metadata.message_type == "train":
            request = decode_request(unpack(message.content)[0])
            told[request.round] = request.learning_rate
    assert told[1] == 0.0
    assert [told[round_] for round_ in range(2, 7)] == rates[1:]


def test_only_sites_that_measured_the_last_step_measure_its_batch_again(tmp_path):
    chosen = config(tmp_path, **{**AUTO, "clients_per_round": 2, "num_clients": 5})
    outcome = federate(chosen)
    rows = comparisons(chosen)
    slots = {round_: {row[1] for row in rows if row[0] == round_} for round_ in range(1, 7)}
    for round_, slot, before, after in rows:
        assert before is not None
        assert (after is not None) == (round_ > 1 and slot in slots[round_ - 1])
    assert any(after is None for round_, _, _, after in rows if round_ > 1)
    forwards = {row[0]: row[6] for row in outcome.rows["metrics"]}
    for round_, count in forwards.items():
        again = sum(after is not None for each, _, _, after in rows if each == round_)
        assert count == 2 * 5 + again


@pytest.mark.parametrize(
    ("changes", "more"),
    [({}, 1), ({"estimator": "two-point"}, 2), ({"staleness": 1}, 2), (WHOLE, 0)],
    ids=str,
)
def test_what_a_comparison_costs_is_counted(tmp_path, monkeypatch, changes, more):
    from shared.training.oracle import Oracle

    calls, loss = [], Oracle.loss
    monkeypatch.setattr(Oracle, "loss", lambda self, rows: calls.append(1) or loss(self, rows))
    monkeypatch.setattr(
        Oracle, "loss_of_all", lambda self, rows: calls.append(1) or loss(self, rows)
    )
    chosen = config(tmp_path, **{**AUTO, **changes})
    outcome = federate(chosen)
    forwards = {row[0]: row[6] for row in outcome.rows["metrics"]}
    each = 8 if "estimator" in changes else 5
    assert forwards[6] == 3 * (each + more)
    assert sum(forwards.values()) == len(calls)


def test_the_falls_are_those_of_the_batches_that_made_the_step(tmp_path):
    """At a small rate the loss of a step's batch falls by what its slopes predict."""
    chosen = config(tmp_path, **{**AUTO, "movement": 1e-5, "queries": 8})
    federate(chosen)
    with ledger_of(chosen) as ledger:
        for step in (1, 2, 3):
            entry, then = ledger.entry(step), ledger.site_numbers(step)
            now = ledger.site_numbers(step + 1)
            predicted = sum(predict_fall(entry, then[s].differences, chosen) for s in then)
            fall = sum(then[slot].before - now[slot].after for slot in then)
            assert fall == pytest.approx(predicted, rel=0.3)


def test_batched_and_merged_sites_compare_the_same_batches(tmp_path):
    common = {**AUTO, "num_rounds": 2, "directions": "lowrank"}
    federate(config(tmp_path, "alone", **common))
    expected = comparisons(config(tmp_path, "alone", **common))
    for name, changes in (("merged", {"merge_clients": True}), ("wide", {"parallel_queries": 3})):
        chosen = config(tmp_path, name, **{**common, **changes})
        grid = Network(chosen)
        if changes.get("merge_clients"):
            grid._before = merge_requests(contexts_of(chosen))
        federate(chosen, grid)
        np.testing.assert_allclose(
            np.array(comparisons(chosen), float), np.array(expected, float), rtol=1e-5
        )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"after": None}, "wrong kind"),
        ({"before": None}, "wrong kind"),
        ({"after": float("nan")}, "not finite"),
        ({"before": 1e10}, "too large"),
    ],
    ids=str,
)
def test_a_reply_without_sound_losses_is_refused_and_the_round_does_without(
    tmp_path, change, reason
):
    chosen = config(tmp_path, **AUTO)

    def spoil(reply):
        if is_reply(reply, 0, 3):
            return [altered(reply, lambda measured: replace(measured, **change))]
        return [reply]

    outcome = federate(chosen, Network(chosen, change=spoil))
    assert [row[1:4] for row in outcome.rows["refusals"]] == [(3, "0", reason)]
    assert outcome.summary["rounds"] == 6
    with ledger_of(chosen) as ledger:
        assert ledger.site_numbers(4).keys() == ledger.site_numbers(2).keys()
        assert [site.after is None for site in ledger.site_numbers(4).values()] == [1, 0, 0]


def test_after_a_rewind_the_rate_goes_on_from_the_round_it_returned_to(tmp_path):
    common = {**AUTO, "movement": 0.9, "guard_rate_factor": 0.01, "num_rounds": 12}
    chosen = config(tmp_path, snapshot_interval=2, **common)

    def spoil(reply):
        if is_reply(reply) and 4 <= int(reply.metadata.group_id) <= 7:
            return [altered(reply, lambda m: replace(m, loss=80.0))]
        return [reply]

    outcome = federate(chosen, Network(chosen, change=spoil))
    assert outcome.summary["rewinds"]
    with ledger_of(chosen) as ledger:
        rates = LearningRates(chosen, ledger, 1)
        rewind = ledger.rewinds()[0]
        assert rates._state(rewind.round) is rates._state(rewind.back_to)
    assert "learning rates follow" in verified(chosen)
    assert federate(resumed(chosen, num_rounds=13)).entries[:12] == outcome.entries


def verified(chosen):
    result = CliRunner().invoke(cli, ["ledger", "verify", str(folder_of(chosen))])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_verification_computes_each_rate_anew(tmp_path):
    chosen = config(tmp_path, **AUTO)
    federate(chosen)
    assert "6 learning rates follow from the rounds before" in verified(chosen)
    with ledger_of(chosen) as ledger:
        parameters = 117_000  # another number of parameters: another first movement
        other = LearningRates(chosen.replace(movement=1e-4), ledger, parameters)
        with pytest.raises(LedgerError, match=r"row 1: a learning rate of .* follows"):
            other.verify()
        former = LearningRates(chosen.replace(step_version=1), ledger, parameters)
        assert former.verify() == 0  # another rule made its rates


def test_losses_are_bound_by_the_chain(tmp_path):
    chosen = config(tmp_path, **AUTO)
    federate(chosen)
    path = folder_of(chosen) / "ledger.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE comparisons SET before = before + 1 WHERE round = 2")
    with pytest.raises(LedgerError, match="row 2: does not fit its chain"):
        LedgerReader.open(path)


def test_a_ledger_of_the_former_version_is_read_and_goes_on(tmp_path):
    chosen = config(tmp_path, num_rounds=2)
    federate(chosen)
    path = folder_of(chosen) / "ledger.sqlite"
    make_former(path)
    with LedgerReader.open(path)._database._connection as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (OLDEST,)
    longer = federate(resumed(chosen, num_rounds=4))
    assert longer.digest == federate(config(tmp_path, "whole", num_rounds=4)).digest
    assert "digests equal" in verified(chosen)


def make_former(path):
    """Make of a ledger what the version before would have written."""
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE comparisons")
        connection.execute(f"PRAGMA user_version = {OLDEST}")


def test_newer_ledgers_are_refused_by_their_version(tmp_path):
    chosen = config(tmp_path, num_rounds=1)
    federate(chosen)
    path = folder_of(chosen) / "ledger.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(LedgerError, match=f"version {OLDEST} to {VERSION} expected"):
        Ledger.open(path)


def test_a_former_configuration_is_two_points_and_plain_whatever_the_defaults(
    tmp_path, monkeypatch
):
    chosen = config(tmp_path, num_rounds=1)
    federate(chosen)
    with ledger_of(chosen) as ledger:
        text = ledger.header("config").decode()
        lines = text.splitlines()
        kept = [x for x in lines if not x.startswith(("estimator ", "step ", "movement "))]
        assert len(kept) == len(lines) - 3
        monkeypatch.setattr(ledger, "header", lambda key: "\n".join(kept).encode())
        read = read_config(ledger)
    assert (read.zo.estimator, read.optimizer.step) == ("two-point", "plain")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"optimizer": "adam"}, "divides by the size"),
        ({"learning_rate": 0.1}, "learning-rate 0.1 is given"),
        ({"learning_rate": 0.1, "step_version": 1}, ""),
        ({"privacy": "local", "privacy_noise": 1.0, "privacy_clip": 40.0}, "are not sent"),
        ({"site_loss": False}, "it rests on losses"),
        ({"momentum": 0.9}, "momentum"),
        ({"seed_schedule": "independent"}, "has not measured"),
        ({"local_steps": 2}, "local-steps"),
        ({"query_data": "fresh"}, "a batch of its own"),
        ({"mode": "calibrate"}, "gradients, not slopes"),
        ({"mode": "fo"}, "gradients, not slopes"),
    ],
    ids=str,
)
def test_auto_is_plain_where_falls_tell_nothing(tmp_path, changes, reason):
    chosen = config(tmp_path, **{"step": "auto", "learning_rate": 0.0, **changes})
    assert step_rule_of(chosen) == ("plain" if reason else "auto")
    assert reason in why_plain(chosen)
    assert bool(reason) == bool(why_plain(chosen))


@pytest.mark.parametrize("changes", [{"optimizer": "adam"}, {"mode": "instruct"}, {"mode": "fo"}])
def test_a_normalised_step_that_cannot_be_is_refused(tmp_path, changes):
    with pytest.raises(ConfigError, match="step 'normalised' with"):
        config(tmp_path, step="normalised", **changes)


@pytest.mark.parametrize("changes", [{"movement": -0.1}, {"movement": 1.0}, {"step_memory": 1.0}])
def test_settings_of_a_step_have_ranges(tmp_path, changes):
    with pytest.raises(ConfigError, match="expected, got"):
        config(tmp_path, **changes)


def test_the_default_movement_is_that_of_what_was_measured(tmp_path):
    chosen = config(tmp_path)
    values = [movement_of(chosen, count) for count in (120_000, 7_100_000, 13_000_000_000)]
    assert values == [5e-3, 3e-3, 2e-5]
    assert movement_of(chosen.replace(movement=1e-4), 10) == 1e-4


def test_energy_is_the_way_of_a_parameter_whatever_the_slots():
    numbers = np.array([3.0, -1.0], np.float32)
    one = Entry(1, 0.1, (SlotDifferences(0, numbers),))
    two = Entry(1, 0.1, (SlotDifferences(1, numbers / 2), SlotDifferences(2, numbers / 2)))
    assert energy_of(one, 0.5, 2) == 5.0
    assert energy_of(two, 0.5, 2) == 2.5


def test_agreement_is_the_share_that_sites_have_in_common():
    rng = np.random.default_rng(5)
    common = 2.0 * rng.standard_normal(200_000)
    sites = [common + 3.0 * rng.standard_normal(200_000) for _ in range(3)]
    agreement = agreement_of(sites)
    assert agreement.sites == 3
    assert agreement.value == pytest.approx(4 / 13, rel=0.05)
    assert agreement_of(sites[:1]) is None
    assert agreement_of([np.zeros(4)] * 3) is None


def test_a_rate_is_that_of_the_settings_if_they_say_one_or_need_one(tmp_path):
    chosen = config(tmp_path, learning_rate=0.0)
    assert rate_set(chosen) is None
    assert rate_set(chosen.replace(learning_rate=0.3)) == 0.3
    assert rate_set(chosen.replace(step="plain")) == 0.02
    assert rate_set(chosen.replace(optimizer="adam")) == 0.02
