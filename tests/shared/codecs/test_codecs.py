"""Codecs keep their stated bounds and lengths."""

import math

import numpy as np
import pytest
import torch
from codec_trials import LAYOUT, codecs, vector

from shared.base.errors import ConfigError, WireError
from shared.base.flat import TILE, Layout
from shared.codecs import CODECS, topk
from shared.codecs.topk import ErrorFeedback, TopK, largest


def through(name, numbers, **options):
    codec = CODECS[name](LAYOUT, **options)
    return codec.decode(codec.encode(numbers))


@codecs
def test_every_payload_has_the_stated_length(codec):
    for seed in range(3):
        assert len(codec.encode(vector(seed))) == codec.payload_bytes
    assert len(codec.encode(torch.zeros(LAYOUT.size))) == codec.payload_bytes


def test_the_stated_lengths_are_the_documented_ones():
    d, tiles = LAYOUT.parameters, LAYOUT.size // TILE
    stated = {name: CODECS[name](LAYOUT).payload_bytes for name in CODECS.names()}
    kept = round(0.01 * d)
    addresses = math.ceil(kept * 6 / 8) + math.ceil((kept + (d - 1 >> 6)) / 8)
    assert stated == {
        "float32": 16 + 4 * d,
        "bfloat16": 16 + 2 * d,
        "int8": 16 + d + 4 * tiles,
        "topk": 16 + 4 * kept + addresses,
    }
    assert addresses < 1.2 * kept


@codecs
def test_encoding_repeats_and_decoding_gives_zero_padding(codec):
    payload = codec.encode(vector())
    decoded_, cleared = codec.decode(payload), codec.decode(payload)
    LAYOUT.clear_padding_(cleared)
    assert codec.encode(vector()) == payload
    assert decoded_.dtype == torch.float32
    assert torch.equal(decoded_, cleared)


@codecs
def test_what_was_decoded_encodes_to_itself(codec):
    once = codec.decode(codec.encode(vector()))
    torch.testing.assert_close(codec.decode(codec.encode(once)), once, rtol=1e-6, atol=0)


@codecs
def test_other_dtypes_are_taken_as_float32_and_the_vector_is_not_touched(codec):
    numbers = vector()
    assert codec.encode(numbers.double()) == codec.encode(numbers)
    assert torch.equal(numbers, vector())


@codecs
def test_a_vector_of_another_layout_is_an_error(codec):
    with pytest.raises(ValueError, match="expected, got"):
        codec.encode(torch.zeros(LAYOUT.size + TILE))


def test_float32_is_exact():
    assert torch.equal(through("float32", vector()), vector())


def test_bfloat16_keeps_eight_bits():
    for spread in (1.0, 6.0, 18.0):
        numbers = vector(spread=spread).clamp(-1e38, 1e38)
        error = (through("bfloat16", numbers).double() - numbers.double()).abs()
        normal = numbers.abs() >= 2.0**-126
        assert (error <= 2.0**-8 * numbers.double().abs())[normal].all()
        assert (error <= 2.0**-134)[~normal].all()


def test_bfloat16_rounds_ties_to_even():
    numbers = torch.zeros(LAYOUT.size)
    numbers[:4] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 1 + 2**-8 + 2**-20])
    expected = torch.tensor([1.0, 1 + 2**-6, -1.0, 1 + 2**-7])
    assert torch.equal(through("bfloat16", numbers)[:4], expected)


@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e20])
def test_int8_errs_by_at_most_half_a_level_of_its_tile(spread, scale):
    numbers = vector(spread=spread) * scale
    error = (through("int8", numbers).double() - numbers.double()).abs().view(-1, TILE)
    peak = numbers.double().abs().view(-1, TILE).amax(dim=1, keepdim=True)
    assert (error <= (1 / 254 + 2.0**-22) * peak).all()


def test_int8_takes_tiles_of_zeros_tiny_and_huge_numbers():
    numbers = torch.zeros(LAYOUT.size)
    numbers[0], numbers[TILE], numbers[2 * TILE - 1] = 1e-40, 3.4e38, -1.7e38
    decoded_ = through("int8", numbers)
    assert decoded_[0] == 0
    assert decoded_[TILE] == pytest.approx(3.4e38)
    assert decoded_[2 * TILE - 1] == pytest.approx(-1.7e38, rel=0.01)


@pytest.mark.parametrize("fraction", [1e-9, 0.01, 0.3, 0.9, 1.0])
def test_topk_keeps_the_largest_exactly(fraction):
    numbers, codec = vector(), CODECS["topk"](LAYOUT, fraction=fraction)
    decoded_ = codec.decode(codec.encode(numbers))
    kept = decoded_ != 0
    assert kept.sum() == codec.kept == max(1, round(fraction * LAYOUT.parameters))
    assert torch.equal(decoded_[kept], numbers[kept])
    assert (
        codec.kept == LAYOUT.parameters or numbers[~kept].abs().max() <= decoded_[kept].abs().min()
    )


def test_topk_prefers_the_lowest_address_among_equals():
    values = np.array([1, -2, 2, 0, -2, 3, 2], dtype=np.float32)
    assert largest(values, 3).tolist() == [1, 2, 5]
    assert largest(np.zeros(5, dtype=np.float32), 2).tolist() == [0, 1]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, math.nan])
def test_topk_refuses_a_fraction_that_is_none(fraction):
    with pytest.raises(ConfigError, match=r"\(0, 1\]"):
        CODECS["topk"](LAYOUT, fraction=fraction)


def test_error_feedback_sends_in_time_what_top_k_left_out():
    feedback = ErrorFeedback(CODECS["topk"](LAYOUT, fraction=0.1))
    plain, carried = torch.zeros(LAYOUT.size), torch.zeros(LAYOUT.size)
    gradient = vector(spread=0.5)
    for _ in range(50):
        plain += through("topk", gradient, fraction=0.1)
        carried += feedback.codec.decode(feedback.encode(gradient))
    assert (plain / 50 - gradient).norm() > 0.5 * gradient.norm()
    assert (carried / 50 - gradient).norm() < 0.2 * gradient.norm()
    torch.testing.assert_close(carried + feedback.residual, 50 * gradient)


def test_error_feedback_over_an_exact_codec_owes_nothing():
    feedback = ErrorFeedback(CODECS["float32"](LAYOUT))
    feedback.encode(vector())
    assert not feedback.residual.any()


def test_a_refused_gradient_leaves_the_residual_as_it_was():
    feedback = ErrorFeedback(CODECS["int8"](LAYOUT))
    feedback.encode(vector())
    before = feedback.residual.clone()
    with pytest.raises(WireError):
        feedback.encode(torch.full((LAYOUT.size,), math.nan))
    assert torch.equal(feedback.residual, before)


@pytest.mark.parametrize(
    ("name", "tag"),
    [("float32", b"f32\0"), ("bfloat16", b"bf16"), ("int8", b"int8"), ("topk", b"topk")],
)
def test_a_payload_says_on_the_wire_which_codec_made_it(name, tag):
    codec = CODECS[name](LAYOUT)
    assert tag in codec.encode(torch.zeros(LAYOUT.size))[:16]


@pytest.mark.parametrize("count", [1, 7, 300, 999])
@pytest.mark.parametrize("piece", [64, 1 << 28])
def test_bit_by_bit_the_largest_are_those_of_a_partition(count, piece, monkeypatch):
    """On a card nothing is sorted; among equal magnitudes the lowest addresses win there, too."""
    monkeypatch.setattr(topk, "PIECE", piece)
    numbers = np.random.default_rng(3).normal(size=1000).astype(np.float32)
    numbers[::3] = np.round(numbers[::3], 1)
    numbers[numbers == 0] = 0.05
    ours = topk.largest_of(torch.from_numpy(numbers), count)
    assert np.array_equal(ours.numpy(), topk.largest(numbers, count))


def test_zeros_are_not_chosen_bit_by_bit():
    assert topk.largest_of(torch.tensor([0.0, 3.0, -0.0]), 2) is None


@pytest.mark.gpu
def test_a_card_sends_the_bytes_of_the_host():
    layout = Layout.of([("a", (70, 50)), ("none", (0,)), ("b", (3,)), ("c", (5000,))])
    vector, codec = torch.randn(layout.size).round(decimals=1), TopK(layout, fraction=0.05)
    layout.clear_padding_(vector)
    assert codec.encode(vector.cuda()) == codec.encode(vector)
