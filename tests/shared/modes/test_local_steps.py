"""Several steps at the site are the average of the sites' own trajectories, step by step."""

import pytest
import torch
from federation import config, federate, ledger_of, replayed

from client.site.site import LocalSite
from shared.modes.batches import draw
from shared.protocol.messages import Request
from shared.protocol.site_id import SiteId
from shared.randomness.streams import direction_keys, query_batch_key
from shared.training.corpus import Corpus
from shared.training.oracle import Oracle

STEPS = {
    "estimator": "two-point",
    "local_steps": 3,
    "queries": 2,
    "learning_rate": 2e-3,
    "num_rounds": 3,
}


def trajectory(c, oracle, shard, start, round_, rate):
    """One site's parameters after K plain steps from ``start``, every tensor written in place."""
    flat, layout = oracle.replica.model.flat, oracle.replica.model.layout
    number, blocks = shard
    theta = start.clone()
    for step in range(c.training.local_steps):
        rows = draw(
            query_batch_key(c.training.seed, round_, 1 + number, step), len(blocks), c.zo.batch_size
        )
        batch, gradient = torch.from_numpy(blocks.batch(rows)), torch.zeros_like(theta)
        slot = 0 if c.zo.seed_schedule == "shared" else 1 + number
        for key in direction_keys(c.training.seed, round_, slot, step * c.zo.queries, c.zo.queries):
            z = torch.zeros_like(theta)
            oracle.replica.directions.add_to_(z, [key], [1.0])
            layout.clear_padding_(z)
            losses = [
                oracle.loss(batch) for flat[:] in (theta + c.zo.eps * z, theta - c.zo.eps * z)
            ]
            gradient += (losses[0] - losses[1]) / (2 * c.zo.eps) / c.zo.queries * z
        theta -= rate * gradient
    return theta


@pytest.mark.parametrize("schedule", ["shared", "independent"])
@pytest.mark.parametrize("warmup", [0, 4])
def test_local_steps_equal_steps_by_hand_averaged_over_the_sites(tmp_path, schedule, warmup):
    c = config(tmp_path, seed_schedule=schedule, warmup_rounds=warmup, **STEPS)
    federate(c)
    oracle = Oracle.of(c)
    corpus = Corpus.of(c, oracle.language_model)
    shards = [
        (k, corpus.shard(k, c.federation.num_clients)) for k in range(c.federation.num_clients)
    ]
    total = sum(len(blocks) for _, blocks in shards)
    with ledger_of(c) as ledger:
        for round_ in range(1, c.training.rounds + 1):
            start, end = replayed(c, ledger, round_ - 1), replayed(c, ledger, round_)
            rate = c.optimizer.learning_rate * (round_ / warmup if warmup else 1)
            mean = sum(
                trajectory(c, oracle, shard, start, round_, rate) * (len(shard[1]) / total)
                for shard in shards
            )
            moved = (mean - start).abs().max()
            assert moved > 1e-4
            # a loss has some 1e-7 of noise; over 2 eps and times the rate that is 1e-7 again
            torch.testing.assert_close(end, mean, rtol=0, atol=2e-6 + 2e-3 * float(moved))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_each_entry_holds_the_rate_of_its_round(tmp_path, schedule):
    c = config(tmp_path, num_rounds=6, warmup_rounds=3, lr_schedule=schedule)
    federate(c)
    with ledger_of(c) as ledger:
        rates = [ledger.entry(round_).learning_rate for round_ in range(1, 7)]
        noted = [metrics.learning_rate for metrics in ledger.metrics()]
    assert rates == noted
    assert rates[:3] == pytest.approx([c.optimizer.learning_rate * k / 3 for k in (1, 2, 3)])
    assert rates[3] == c.optimizer.learning_rate
    assert (rates[5] == c.optimizer.learning_rate) == (schedule == "constant")


def test_a_step_size_of_their_own_changes_the_trajectory_not_the_first_step(tmp_path):
    result = [
        federate(config(tmp_path, str(rate), local_learning_rate=rate, **STEPS | {"num_rounds": 1}))
        for rate in (0.0, 2e-3, 1e-2)
    ]
    assert result[0].entries == result[1].entries  # 0 is the round's own rate
    one, other = (result[k].rows["contributions"][0][6] for k in (0, 2))
    assert one[:8] == other[:8]  # the two numbers of the first step
    assert one[8:] != other[8:]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_site_leaves_the_parameters_as_they_are(tmp_path, steps, fails):
    c = config(tmp_path, local_steps=steps, learning_rate=0.1)
    oracle = Oracle.of(c)
    blocks = Corpus.of(c, oracle.language_model).shard(0, 3)
    site, before = LocalSite(SiteId(1, "0"), blocks, c), oracle.replica.model.flat.clone()
    request = Request(1, 0.1, bytes(16), bytes(16), bytes(16))
    if fails:
        site = LocalSite(SiteId(1, "0"), Failing(blocks, at=steps), c)
        with pytest.raises(MemoryError):
            site.measure(oracle, request)
    else:
        site.measure(oracle, request)
    assert torch.equal(oracle.replica.model.flat, before)


class Failing:
    """Blocks that cannot be had any more at the n-th time."""

    def __init__(self, blocks, at):
        self.blocks, self.left = blocks, at

    def __len__(self):
        return len(self.blocks)

    def batch(self, rows):
        self.left -= 1
        if not self.left:
            raise MemoryError
        return self.blocks.batch(rows)
