"""Many rounds in one pass give the bits, and the digests, that they give round by round."""

import numpy as np
import pytest
import torch
import xxhash

from shared.base.errors import GapError
from shared.base.flat import FlatModel, Layout
from shared.config.schema import Config
from shared.directions import DIRECTIONS
from shared.protocol.entry import Entry, SlotDifferences
from shared.replica import replay
from shared.replica import replica as module
from shared.replica.replica import Replica, digest_of, hash_through

LAYOUT = Layout.of([("m", (90, 100)), ("bias", (70,)), ("odd", (33, 65)), ("whole", (2, 1024))])
ROUNDS = 9


def replica(family="rademacher", **changes):
    keys = {key.replace("_", "-"): value for key, value in changes.items()}
    config = Config.from_run_config({"directions": family, "queries": 3, **keys})
    flat = torch.linspace(-1, 1, LAYOUT.size)
    LAYOUT.clear_padding_(flat)
    return Replica.of(FlatModel(torch.nn.Module(), LAYOUT, flat), config)


def entry(round_, slots=(0,), guide=0.0, payload=b""):
    groups = [
        SlotDifferences(slot, np.array([0.3, -1.1, 0.01], np.float32) * np.float32(round_ + slot))
        for slot in slots
    ]
    return Entry(round_, 1e-3 / round_, tuple(groups), guide, payload)


def dense(round_, follower):
    gradient = torch.linspace(0, 1, LAYOUT.size)
    LAYOUT.clear_padding_(gradient)
    return entry(round_, guide=0.5, payload=follower.codec.encode(gradient))


def one_by_one(follower, entries):
    """Digests by round, the steps taken as an optimizer takes them."""
    digests = {}
    for entry_ in entries:
        flat = follower.model.flat
        follower.optimizer.step_(flat, follower.gradient(entry_), entry_.learning_rate)
        follower.model.layout.clear_padding_(flat)
        follower.set_round(entry_.round)
        digests[entry_.round] = digest_of(flat)
    return digests


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("family", DIRECTIONS.names())
@pytest.mark.parametrize("keys", [1, 7, 1 << 14])
def test_all_rounds_at_once_are_the_rounds_one_by_one(family, keys, threads, monkeypatch):
    torch.set_num_threads(threads)
    monkeypatch.setattr(module, "PASS_KEYS", keys)
    monkeypatch.setattr(replay, "PIECE", 2 * 2048)
    monkeypatch.setattr("shared.directions.kernels.compiled.PARALLEL_FROM", 1)
    entries = [entry(r, slots=(1, 4) if r % 3 else (2,)) for r in range(1, ROUNDS + 1)]
    expected, fused, proving = replica(family), replica(family), replica(family)
    digests = one_by_one(expected, entries)
    fused.apply(entries)
    assert torch.equal(fused.model.flat, expected.model.flat)
    assert dict(proving.apply_with_digests(entries)) == digests
    assert torch.equal(proving.model.flat, expected.model.flat)
    assert fused.round == proving.round == ROUNDS
    assert fused.digest() == proving.digest() == digests[ROUNDS]


@pytest.mark.parametrize(
    "changes",
    [{}, {"momentum": 0.9}, {"weight_decay": 0.1}, {"optimizer": "adam"}],
    ids=str,
)
def test_what_cannot_be_fused_is_taken_in_its_turn(changes):
    expected = replica(mode="calibrate", **changes)
    entries = [dense(r, expected) if r in (3, 6) else entry(r) for r in range(1, ROUNDS + 1)]
    digests = one_by_one(expected, entries)
    follower, proving = replica(mode="calibrate", **changes), replica(mode="calibrate", **changes)
    follower.apply(entries)
    assert dict(proving.apply_with_digests(entries)) == digests
    assert follower.digest() == proving.digest() == digests[ROUNDS]


class Counting:
    """Directions that count their passes."""

    def __init__(self, inner):
        self.inner, self.passes = inner, 0

    def add_to_(self, flat, keys, coefficients, start=0):
        self.passes += 1
        self.inner.add_to_(flat, keys, coefficients, start)


@pytest.mark.parametrize(("changes", "passes"), [({}, 1), ({"momentum": 0.5}, ROUNDS)])
def test_plain_steps_are_one_pass_and_others_one_each(changes, passes):
    follower = replica(**changes)
    follower.directions = Counting(follower.directions)
    follower.apply(entry(r) for r in range(1, ROUNDS + 1))
    assert follower.directions.passes == passes


def test_a_gap_is_an_error_after_what_came_before_it():
    follower, expected = replica(), replica()
    with pytest.raises(GapError, match="round 4 expected, got 5"):
        follower.apply([entry(1), entry(2), entry(2), entry(3), entry(5)])
    expected.apply([entry(1), entry(2), entry(3)])
    assert follower.round == 3
    assert torch.equal(follower.model.flat, expected.model.flat)


def test_rounds_that_are_applied_already_change_nothing():
    follower = replica()
    follower.apply([entry(1), entry(2)])
    before = follower.digest()
    assert list(follower.apply_with_digests([entry(1), entry(2)])) == []
    assert follower.digest() == before


@pytest.mark.parametrize("buffer", [1, 1000, 4096, 1 << 20])
def test_a_digest_through_a_buffer_is_that_of_the_whole(buffer):
    bits = torch.arange(10_007).to(torch.uint8)
    through = xxhash.xxh3_128(seed=3)
    hash_through(through, bits, torch.empty(buffer, dtype=torch.uint8))
    assert through.digest() == digest_of(bits, 3)
    assert digest_of(bits.view(torch.uint8)) == xxhash.xxh3_128_digest(bits.numpy().tobytes())
