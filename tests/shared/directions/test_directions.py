"""What every registered family of directions promises, and what Gaussian ones are."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from shared.base.flat import TILE, Layout
from shared.directions import DIRECTIONS, gaussian
from shared.directions.backends import check_ids, check_pairs, check_source
from shared.directions.gaussian import normals
from shared.randomness.philox import words
from shared.randomness.streams import Key

KEY = Key(seed=2**63 + 11, round=5, slot=3, index=7)
LAYOUT = Layout.of([("matrix", (48, 100)), ("bias", (70,)), ("odd", (33, 65)), ("one", (1,))])


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=DIRECTIONS.names())
def family(request):
    return DIRECTIONS[request.param](LAYOUT)


def drawn(family, key, start=0, size=LAYOUT.size):
    z = torch.zeros(size)
    family.add_to_(z, [key], [1.0], start)
    return z


def test_any_slice_is_that_slice_of_the_full_draw(family):
    full = drawn(family, KEY)
    matrix, bias, odd, _ = LAYOUT.tensors
    for low, high in (
        (0, LAYOUT.size),
        (matrix.start + 300, matrix.start + 700),
        (matrix.start + 37, matrix.stop - 1),
        (bias.start, bias.stop),
        (odd.start + TILE, odd.start + TILE + 1),
        (matrix.start + 101, odd.stop),
    ):
        assert torch.equal(drawn(family, KEY, low, high - low), full[low:high]), (low, high)


def test_perturbing_is_copying_and_adding(family):
    source = torch.linspace(-1, 1, LAYOUT.size)
    before = source.clone()
    for span in LAYOUT.tensors:
        part, added = source[span.start : span.stop], before[span.start : span.stop].clone()
        family.add_to_(added, [KEY], [1e-3], span.start)
        out = torch.empty_like(part)
        family.perturb_(out, part, span.start, KEY, 1e-3)
        assert torch.equal(out, added)
    assert torch.equal(source, before)


def test_rows_are_rows_of_the_full_draw(family):
    full = drawn(family, KEY)
    for span in (LAYOUT.tensors[0], LAYOUT.tensors[2]):
        ids = torch.tensor([7, 0, 31, 7, 7, 32])
        rows = torch.zeros(len(ids), span.shape[1])
        family.add_rows_(rows, ids, span.start, KEY, 1.0)
        assert torch.equal(rows, full[span.start : span.stop].view(span.shape)[ids])


def test_keys_are_added_in_their_order(family):
    keys, coefficients = [replace(KEY, index=k) for k in range(5)], [0.3, -7.7, 1e-4, 2.1, 0.9]
    together = torch.linspace(-1, 1, LAYOUT.size)
    one_by_one = together.clone()
    family.add_to_(together, keys, coefficients)
    for key, coefficient in zip(keys, coefficients, strict=True):
        family.add_to_(one_by_one, [key], [coefficient])
    assert torch.equal(together, one_by_one)


def test_no_keys_add_nothing(family):
    vector = torch.linspace(-1, 1, LAYOUT.size)
    before = vector.clone()
    family.add_to_(vector, [], [])
    assert torch.equal(vector, before)


def test_shapes_that_do_not_fit_are_refused(family):
    # By torch or by the family itself; `test_a_refusal_names_the_shapes` is about our own words.
    vector = torch.zeros(8)
    refused = pytest.raises((ValueError, RuntimeError))
    with refused:
        family.add_to_(vector, [KEY, KEY], [1.0])
    with refused:
        family.perturb_(vector, vector[:4], 0, KEY, 1.0)
    with refused:
        family.add_rows_(vector.view(2, 4), torch.tensor([1]), 0, KEY, 1.0)


def test_a_refusal_names_the_shapes():
    with pytest.raises(ValueError, match="2 keys came with 1 coefficients"):
        check_pairs([KEY, KEY], [1.0])
    with pytest.raises(ValueError, match=r"out \(8,\) does not fit source \(4,\)"):
        check_source(torch.zeros(8), torch.zeros(4))
    with pytest.raises(ValueError, match=r"ids \(1,\) do not name rows \(2, 4\)"):
        check_ids(torch.zeros(2, 4), torch.tensor([1]))


def test_every_part_of_a_key_changes_the_direction(family):
    keys = [KEY, replace(KEY, seed=KEY.seed + 1), replace(KEY, seed=11)]
    keys += [replace(KEY, round=6), replace(KEY, slot=4), replace(KEY, index=8)]
    keys += [Key(KEY.seed, 3, 5, 7), Key(KEY.seed, 5, 7, 3)]  # the same numbers, exchanged
    directions = [drawn(family, key)[: LAYOUT.tensors[0].stop] for key in keys]
    for i, z in enumerate(directions):
        for other in directions[:i]:
            assert abs(torch.cosine_similarity(z, other, dim=0)) < 0.2


def test_directions_have_mean_zero_and_variance_one_and_are_unrelated(family):
    keys = 256
    z = torch.stack([drawn(family, replace(KEY, index=k)) for k in range(keys)])
    for span in LAYOUT.tensors:
        part = z[:, span.start : span.stop]
        deviation = (keys * span.size) ** -0.5
        assert abs(part.square().mean() - 1) < max(0.02, 10 * deviation)
        assert part.mean(0).abs().max() < 6 * keys**-0.5
        cosines = (part @ part.T / span.size).fill_diagonal_(0)
        assert cosines.square().sum() / (keys * (keys - 1)) < 1.3 / span.size


def test_an_exact_family_has_the_same_bits_at_any_thread_count(family):
    if not family.exact:
        pytest.skip("its last bits may differ")
    torch.set_num_threads(1)
    expected = drawn(family, KEY)
    torch.set_num_threads(2)
    assert torch.equal(drawn(family, KEY), expected)


def test_normals_are_box_and_mullers_of_the_words():
    blocks = torch.arange(5, 105)
    w = (words(KEY, range(5, 105)) + np.array([1.0, 0.0, 1.0, 0.0])) / 2**32
    radius, angle = np.sqrt(-2 * np.log(w[:, ::2])), 2 * np.pi * w[:, 1::2]
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 2).reshape(100, 4)
    np.testing.assert_allclose(normals(KEY, blocks).numpy(), expected, rtol=2e-5, atol=2e-6)


def test_normals_have_the_normal_distribution():
    z = drawn(DIRECTIONS["gaussian"](LAYOUT), KEY, 0, 1 << 20).double().sort().values
    expected = torch.special.ndtr(z)
    observed = (torch.arange(1 << 20) + 0.5) / (1 << 20)
    assert (expected - observed).abs().max() < 1.95 * 2**-10  # Kolmogorov-Smirnov, p = 0.001


def test_normals_do_not_depend_on_the_number_of_threads():
    family, size = DIRECTIONS["gaussian"](LAYOUT), 100_003
    torch.set_num_threads(1)
    expected = drawn(family, KEY, 5, size)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        gaussian.forget_draws()
        assert torch.equal(drawn(family, KEY, 5, size), expected)


def test_normals_are_drawn_once_for_the_sites_of_a_process(monkeypatch):
    gaussian.forget_draws()
    family, sizes, source = DIRECTIONS["gaussian"](LAYOUT), [], torch.zeros(LAYOUT.size)
    monkeypatch.setattr(
        gaussian, "normals", lambda key, blocks: sizes.append(len(blocks)) or normals(key, blocks)
    )
    expected = drawn(family, KEY)
    for _ in range(3):
        out = torch.empty_like(source)
        family.perturb_(out, source, 0, KEY, 1.0)
        out *= 2  # what is kept is not what was handed out
    assert torch.equal(drawn(family, KEY), expected)
    assert sizes == [-(-LAYOUT.size // 4)]
    drawn(family, replace(KEY, index=8))
    assert len(sizes) == 2
