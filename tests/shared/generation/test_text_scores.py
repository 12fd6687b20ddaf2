"""Scores of texts as their definitions give them."""

import sys

import pytest

from shared.base.errors import ConfigError
from shared.generation import text_scores
from shared.generation.text_scores import exact_match, rouge_l, sum_scores, token_f1

pytest.importorskip("rouge_score", reason="the extra generation is not installed")


@pytest.mark.parametrize(
    ("text", "expected", "exact", "f1"),
    [
        ("The cat, sat!", "cat sat", 1, 1),
        ("a dog", "the cat", 0, 0),
        ("cat cat sat", "cat sat down", 0, 2 / 3),
        ("", "", 1, 1),
        ("the", "cat", 0, 0),
    ],
)
def test_normalised_words_are_compared_as_squad_does(text, expected, exact, f1):
    assert exact_match(text, expected) == exact
    assert token_f1(text, expected) == pytest.approx(f1)


def test_rouge_l_is_the_longest_common_subsequence_of_stems():
    """Stems of 'returning the sums' and 'return a sum of': return, sum; 2 · (2/3)(2/4) / (7/6)."""
    assert rouge_l("returning the sums", "return a sum of") == pytest.approx(4 / 7)
    assert rouge_l("same words", "same words") == 1
    assert rouge_l("", "same words") == 0


def test_sums_add_up_over_the_texts():
    sums = sum_scores(["cat", "dog"], ["cat", "cow"])
    assert sums == {"exact-match": 1, "token-f1": 1, "rouge-l": 1}


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    text_scores._rouge.cache_clear()
    with pytest.raises(ConfigError, match=r"dandelion\[generation\]"):
        text_scores.check_installed()
    text_scores._rouge.cache_clear()
