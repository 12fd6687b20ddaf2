"""Each mode lowers the loss, can be repeated, costs what it says, and works in a mixed fleet."""

import pytest
import torch
from fleet import ALL_MODES, config, federate, of_mode, tolerates_sites_without_gradients

from shared.codecs import codec_of
from shared.modes.mode import MODES as REGISTRY
from shared.modes.mode import plan_of
from shared.training.oracle import Oracle
from shared.training.validate import configure

every_mode = pytest.mark.parametrize("mode", ALL_MODES)
mixed_modes = pytest.mark.parametrize(
    "mode", [mode for mode in ALL_MODES if tolerates_sites_without_gradients(mode)]
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run of each mode, made when first asked for."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def get(mode):
        if mode not in made:
            made[mode] = federate(of_mode(folder, mode, mode.replace(" ", "-")))
        return made[mode]

    return get


@pytest.mark.parametrize("name", REGISTRY.names())
def test_what_a_mode_says_of_itself_is_what_its_plans_do(name):
    mode, chosen = REGISTRY[name], configure({"mode": name, "bp-interval": 3})
    plans = [plan_of(chosen, round_) for round_ in range(1, 10)]
    assert mode.measures == any(plan.measure for plan in plans)
    assert mode.always_backpropagates == all(plan.dense and not plan.measure for plan in plans)
    assert mode.averages_parameters == any(plan.train for plan in plans)
    assert mode.leans_on_gradient == any(plan.measure and plan.backpropagate for plan in plans)
    assert mode.has_interval == (len({plan.dense for plan in plans}) == 2)


@pytest.mark.parametrize("name", REGISTRY.names())
def test_a_guidance_is_kept_only_to_be_measured_along(name):
    kept = configure({"mode": name, "guidance": "reuse"})
    along = {plan_of(kept, round_).along for round_ in range(1, 13)}
    assert REGISTRY[name].keeps_guidance(kept) == ("guidance" in along)
    assert not REGISTRY[name].keeps_guidance(configure({"mode": name}))


@every_mode
def test_a_mode_lowers_the_loss_and_no_reply_is_refused(runs, mode):
    result = runs(mode)
    assert result.losses[-1] < result.losses[0]
    assert not result.refusals


@every_mode
def test_a_mode_run_twice_has_the_same_digest(runs, mode, tmp_path):
    assert federate(of_mode(tmp_path, mode)).digest == runs(mode).digest


@mixed_modes
def test_a_fleet_of_which_some_cannot_backpropagate_works_in_every_mode(mode, tmp_path):
    c = of_mode(tmp_path, mode, num_clients=8, num_rounds=3)
    result = federate(c, unable=(2, 5))
    assert not result.refusals
    assert result.losses[-1] < result.losses[0]
    assert bool(result.entries[0].payload) == plan_of(c, 1).dense
    assert len(result.entries[0].slots) == 1  # of those that measured


@every_mode
def test_base_and_ledger_give_the_same_bits_again(runs, mode):
    c = of_mode(runs(mode).folder.parent, mode, mode.replace(" ", "-"))
    replica = Oracle.of(c).replica
    replica.apply(runs(mode).entries)
    assert torch.equal(replica.model.flat, runs(mode).flat)


def test_calibrate_in_every_round_is_fo_bit_for_bit(runs, tmp_path):
    result = federate(of_mode(tmp_path, "calibrate", bp_interval=1))
    assert result.digest == runs("fo").digest
    assert [e.encode() for e in result.entries] == [e.encode() for e in runs("fo").entries]


def test_calibrate_spends_no_query_on_a_round_that_backpropagates(runs):
    result = runs("calibrate")
    assert [len(entry.slots) for entry in result.entries] == [0, 1, 0, 1]
    assert result.forwards == [3 * 3] * 4  # 3 sites: a backward counts 1 + 2, two queries q + 1


def test_instruct_sends_both_and_reuse_leans_on_the_last_gradient_between(runs):
    assert [bool(entry.payload) for entry in runs("instruct").entries] == [True, False, True, False]
    assert all(len(entry.slots) == 1 for entry in runs("instruct").entries)
    reuse = runs("instruct reuse").entries
    assert [entry.guide != 0 for entry in reuse] == [True] * 4
    assert len(reuse[1].encode()) < 60


def test_bytes_are_counted_as_gradients_where_gradients_are_in_them(runs):
    c = of_mode("none", "fo")
    size = codec_of(c, Oracle.of(c).replica.model.layout).payload_bytes
    up = [row for row in runs("fo").traffic if row[1:3] == ("up", "gradient")]
    assert [row[3] for row in up] == [44 + size] * 12
    down = [row for row in runs("fo").traffic if row[1:3] == ("down", "gradient")]
    assert {row[0] for row in down} == {2, 3, 4}


@pytest.mark.parametrize("codec", ["bfloat16", "int8", "topk"])
@pytest.mark.parametrize("mode", ["fo", "instruct reuse"])
def test_a_lossy_codec_changes_nothing_but_accuracy(codec, mode, tmp_path):
    topk = {"topk_fraction": 0.05, "error_feedback": True} if codec == "topk" else {}
    c = of_mode(tmp_path, mode, codec=codec, **topk)
    result = federate(c)
    assert result.losses[-1] < result.losses[0]
    replica = Oracle.of(c).replica
    replica.apply(result.entries)
    assert torch.equal(replica.model.flat, result.flat)


def test_lossy_payloads_are_smaller_by_what_their_codecs_say(tmp_path):
    sizes = {}
    for codec in ("float32", "bfloat16", "int8", "topk"):
        c = config(tmp_path, codec, mode="fo", codec=codec, num_rounds=1, num_clients=1)
        sizes[codec] = len(federate(c).entries[0].payload)
    assert sizes["float32"] > 1.9 * sizes["bfloat16"] > 3.5 * sizes["int8"] > 30 * sizes["topk"]


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum", "bulyan"])
def test_gradients_are_aggregated_by_the_rule_of_the_numbers(rule, tmp_path):
    result = federate(
        config(tmp_path, mode="fo", aggregation=rule, num_clients=7, min_clients=7, num_rounds=2)
    )
    assert result.losses[-1] < result.losses[0]


@pytest.mark.parametrize("kind", ["same", "fresh", "shared"])
def test_queries_take_their_batches_as_said(kind, tmp_path, monkeypatch):
    batches = []
    loss = Oracle.loss
    monkeypatch.setattr(Oracle, "loss", lambda own, b: batches.append(b) or loss(own, b))
    c = config(tmp_path, query_data=kind, num_clients=1, num_rounds=1, queries=3)
    result = federate(c)
    evaluations = 6 if kind == "fresh" else 4  # forward differences if one baseline is enough
    measured = batches[:evaluations]
    assert [len(batch) for batch in measured] == [6 if kind == "shared" else 2] * evaluations
    assert len({batch.numpy().tobytes() for batch in measured}) == (3 if kind == "fresh" else 1)
    assert result.forwards == [12 if kind == "shared" else evaluations]


def test_a_site_that_cannot_backpropagate_is_asked_for_what_it_can():
    c = of_mode("none", "instruct")
    assert plan_of(c, 1, True).dense
    assert not plan_of(c, 1, False).dense
    assert plan_of(c, 1, False).measure
