"""Examples of one length share a pass, so that what is kept of one depends on it alone."""

from functools import partial

import numpy as np
import pytest
import small_models
import torch
from tiny_reviews import CLASSES, reviews  # noqa: F401  (a fixture)

from shared.features.passes import repeat_to_fill, split_into_passes
from shared.training.oracle import Oracle
from shared.training.server_choices import resolve_choices
from shared.training.validate import configure

LENGTHS = [5, 3, 5, 4, 3, 5, 5]


def test_a_pass_holds_examples_of_one_length():
    assert [*split_into_passes(LENGTHS, 10, mixed=False)] == [[1, 4], [3], [0, 2], [5, 6]]


def test_on_a_card_lengths_are_mixed_as_far_as_there_is_room():
    assert [*split_into_passes(LENGTHS, 15, mixed=True)] == [[1, 4, 3], [0, 2, 5], [6]]


def test_an_example_longer_than_a_pass_has_one_of_its_own():
    assert [*split_into_passes([40, 2, 40], 10, mixed=True)] == [[1], [0], [2]]
    assert [*split_into_passes([], 10, mixed=False)] == []


def test_a_short_pass_is_filled_since_few_rows_are_summed_in_another_order():
    assert repeat_to_fill([7]) == [7] * 4
    assert repeat_to_fill([7, 9, 8]) == [7, 9, 8] * 2
    assert repeat_to_fill([7, 9, 8, 6, 1]) == [7, 9, 8, 6, 1]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["head", "words"])
def test_features_of_a_text_are_the_same_bits_in_any_company(kind, tmp_path, monkeypatch):
    """As two sites of one process, two processes, or a cache of another run would have them."""
    features = {"head": "mean", "words": "last+layer:1:mean"}[kind]
    make = {"head": small_models.encoder, "words": partial(small_models.causal, inner=32)}[kind]
    chosen = {"model": make(tmp_path / "model"), **CLASSES, "scope": kind, "features": features}
    drawn = np.random.default_rng(1)
    texts = [drawn.integers(1, 11, drawn.integers(3, 12)) for _ in range(40)]
    rows = np.full((len(texts), 12), -1, np.int64)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = text
    tokens, lengths = torch.from_numpy(rows), torch.tensor([len(text) for text in texts])
    together = features_of(tmp_path / "a", monkeypatch, chosen)
    apart = features_of(tmp_path / "b", monkeypatch, chosen)
    whole = together(tokens, lengths)
    for part in (slice(31, 36), slice(0, 1), slice(20, 40), slice(None)):
        order = torch.arange(len(texts))[part].flip(0)
        assert torch.equal(apart(tokens[order], lengths[order]), whole[order])


def features_of(cache, monkeypatch, chosen):
    """What computes features (B, f) of tokens (B, T) and lengths (B,), with a cache of its own."""
    monkeypatch.setenv("DANDELION_CACHE", str(cache))
    oracle = Oracle.of(resolve_choices(configure({**chosen, "threads": 1, "keep_disk": 0})))
    module = oracle.language_model.module
    return lambda tokens, lengths: oracle.task.readout.kept.look_up(module, tokens, lengths)
