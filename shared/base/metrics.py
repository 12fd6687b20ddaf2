"""Loss, accuracy and F1, computed from sums that add up over batches and sites in any order."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Shares = NDArray[np.float64]


# Sums over examples that the scores of estimated numbers are made of.
ABSOLUTE, SQUARED = "absolute error", "squared error"
MOMENTS = {ABSOLUTE, SQUARED, "number", "estimate", "number²", "estimate²", "number × estimate"}


def _empty() -> Counts:
    return np.zeros((0, 0), np.int64)


def _no_pairs() -> Shares:
    return np.zeros((0, 2))


@dataclass(frozen=True)
class EvalSums:
    """Sums over the examples that a model was evaluated on."""

    total: float  # loss in nats, summed over the examples
    examples: int
    confusion: Counts = field(default_factory=_empty)  # [class, choice]; empty without classes
    sums: Mapping[str, float] = field(default_factory=dict)  # of a problem's own metrics, by name
    # (n, 2), each number with its estimate, for what no sums give; never sent by a site
    pairs: Shares = field(default_factory=_no_pairs)

    @property
    def classes(self) -> int:
        """Number of the task's classes; 0 if it has none."""
        return len(self.confusion)

    def __add__(self, other: "EvalSums") -> "EvalSums":
        if not self.examples or not other.examples:
            return self if self.examples else other
        confusion = self.confusion + other.confusion
        sums = {name: value + other.sums[name] for name, value in self.sums.items()}
        pairs = np.concatenate([self.pairs, other.pairs])
        total, examples = self.total + other.total, self.examples + other.examples
        return EvalSums(total, examples, confusion, sums, pairs)

    @property
    def loss(self) -> float:
        """Mean loss in nats."""
        return self.total / self.examples

    def scores(self) -> Mapping[str, float]:
        """Return accuracy and F1 by name, or the means of a problem's own metrics, if there are."""
        if self.sums.keys() >= MOMENTS:
            scores = number_scores(self.sums, self.examples)
            if len(self.pairs) == self.examples:
                scores["spearman"] = rank_correlation(*self.pairs.T)
            return scores
        if not self.confusion.size:
            return {name: value / self.examples for name, value in self.sums.items()}
        return {
            "accuracy": accuracy(self.confusion),
            "f1": f1(self.confusion),
            "macro_f1": macro_f1(self.confusion),
        }


def names_of_scores(sums: Iterable[str]) -> tuple[str, ...]:
    """The names of the scores that sums of these names, and a table of pairs, are made into."""
    one = EvalSums(0.0, 1, sums=dict.fromkeys(sums, 0.0), pairs=np.zeros((1, 2)))
    return tuple(one.scores())


def confusion_of(classes: Counts, choices: Counts, count: int) -> Counts:
    """Count how often each class got each choice; both (n,), the result (count, count)."""
    pairs = np.bincount(classes * count + choices, minlength=count * count)
    return pairs.astype(np.int64).reshape(count, count)


def accuracy(confusion: Counts) -> float:
    """Return the share of right choices."""
    return float(np.trace(confusion) / confusion.sum())


def f1(confusion: Counts) -> float:
    """Return 2 · right / (chosen + present): of class 1 if there are two, else the mean over all.

    A class that is neither present nor chosen counts 0 (van Rijsbergen 1979; scikit-learn's binary
    and macro averages).
    """
    each = class_scores(confusion).f1
    return float(each[1] if len(each) == 2 else each.mean())


def macro_f1(confusion: Counts) -> float:
    """Return the mean of the classes' F1, all of equal weight, whatever their number of examples.

    A class that is neither present nor chosen counts 0.
    """
    return float(class_scores(confusion).f1.mean())


class ClassScores(NamedTuple):
    """Numbers of each class (k,); 0 if there is nothing to divide by."""

    precision: Shares  # of its choices, how many are right
    recall: Shares  # of its examples, how many are chosen
    f1: Shares  # their harmonic mean
    support: Counts  # its examples


def class_scores(confusion: Counts) -> ClassScores:
    """Precision, recall, F1 and support of each class of a table [class, choice]."""
    right, present, chosen = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return ClassScores(
        right / np.maximum(chosen, 1),
        right / np.maximum(present, 1),
        2 * right / np.maximum(chosen + present, 1),
        present,
    )


def number_sums(numbers: Shares, estimates: Shares) -> dict[str, float]:
    """What the scores of estimates (n,) of numbers (n,) are made of; sums of parts add up.

    Both may be taken less the same constant, which no score depends on.
    """
    error = estimates - numbers
    return {
        ABSOLUTE: float(np.abs(error).sum()),
        SQUARED: float((error**2).sum()),
        "number": float(numbers.sum()),
        "estimate": float(estimates.sum()),
        "number²": float((numbers**2).sum()),
        "estimate²": float((estimates**2).sum()),
        "number × estimate": float((numbers * estimates).sum()),
    }


def number_scores(sums: Mapping[str, float], count: int) -> dict[str, float]:
    """Mean absolute error, root mean squared error, and Pearson's correlation; 0 if undefined."""
    mean = {name: value / count for name, value in sums.items()}
    joint = mean["number × estimate"] - mean["number"] * mean["estimate"]
    spread = (mean["number²"] - mean["number"] ** 2) * (mean["estimate²"] - mean["estimate"] ** 2)
    return {
        "mae": mean[ABSOLUTE],
        "rmse": mean[SQUARED] ** 0.5,
        "pearson": float(np.clip(joint / spread**0.5, -1, 1)) if spread > 0 else 0.0,
    }


def rank_correlation(numbers: Shares, estimates: Shares) -> float:
    """Pearson's correlation of the ranks of numbers (n,) and estimates (n,); 0 if undefined.

    Equal numbers share the mean of their ranks (Spearman 1904, https://doi.org/10.2307/1412159).
    """
    first, second = _ranks(numbers), _ranks(estimates)
    spread = first.std() * second.std()
    joint = ((first - first.mean()) * (second - second.mean())).mean()
    return float(np.clip(joint / spread, -1, 1)) if spread > 0 else 0.0


def _ranks(values: Shares) -> Shares:
    """The rank of each value (n,), from 1; ties get the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Shares = (counts.cumsum() - (counts - 1) / 2)[which]
    return ranks
