"""How far a text is like the one expected: exact match, token F1, and ROUGE-L.

Exact match and token F1 are of normalised words (Rajpurkar et al. 2016, SQuAD,
https://arxiv.org/abs/1606.05250); ROUGE-L is the F-measure of the longest common subsequence
(Lin 2004, https://aclanthology.org/W04-1013) with stemming, by Google's ``rouge-score``.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from shared.base.extras import import_extra

EXACT, TOKEN_F1, ROUGE_L = "exact-match", "token-f1", "rouge-l"
TEXT_SCORES = (EXACT, TOKEN_F1, ROUGE_L)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normal_words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and articles, as SQuAD has them."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return ARTICLES.sub(" ", plain).split()


def exact_match(text: str, expected: str) -> float:
    """1 if the normalised words of both are the same, else 0."""
    return float(normal_words(text) == normal_words(expected))


def token_f1(text: str, expected: str) -> float:
    """The harmonic mean of precision and recall of normalised words; 1 if both have none."""
    ours, theirs = normal_words(text), normal_words(expected)
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def rouge_l(text: str, expected: str) -> float:
    """The F-measure of the longest common subsequence of stemmed words, from 0 to 1.

    Raises:
        ConfigError: ``rouge-score`` is not installed.
    """
    return float(_rouge().score(expected, text)["rougeL"].fmeasure)


def sum_scores(texts: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """Each score of ``TEXT_SCORES``, summed over the texts.

    Raises:
        ConfigError: ``rouge-score`` is not installed.
    """
    pairs = list(zip(texts, expected, strict=True))
    functions = zip(TEXT_SCORES, (exact_match, token_f1, rouge_l), strict=True)
    return {name: sum(score(*pair) for pair in pairs) for name, score in functions}


def check_installed() -> None:
    """Refuse at a run's start, not at its first evaluation.

    Raises:
        ConfigError: ``rouge-score`` is not installed.
    """
    _rouge()


@cache
def _rouge() -> Any:  # noqa: ANN401
    scorer = import_extra("generation", "task generation", "rouge_score.rouge_scorer")
    return scorer.RougeScorer(["rougeL"], use_stemmer=True)
