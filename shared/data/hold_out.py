"""Examples that are held out for evaluation: a fair share, with every class on both sides."""

from math import ceil

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ConfigError
from shared.data.documents import has_lost_a_class, space_evenly, space_fairly
from shared.data.examples import Examples


def hold_out(examples: Examples, fraction: float, most: int = 0) -> tuple[Examples, Examples]:
    """Split examples into a training and an evaluation part.

    The last ``fraction`` of each group is held out, at least one example of a group that has two.
    If groups are so small that this is less than half of ``fraction`` or more than twice as much of
    the whole, or if a class would be in one part only, ``fraction`` is held out of all examples.
    ``most`` (0: no limit) keeps that many of those, evenly spaced over the groups in their order:
    each group's proportion of the evaluation is its proportion of the data.

    Raises:
        ConfigError: ``fraction`` is outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"a held-out fraction in [0, 1) expected, got {fraction}")
    apart = _ends_of_groups(examples, fraction)
    if not _is_fair(examples, apart, fraction):
        apart = _spread(examples, fraction)
    evaluation = np.flatnonzero(apart)
    if 0 < most < len(evaluation):
        labels = None if examples.labels is None else examples.labels[evaluation]
        evaluation = evaluation[space_fairly(labels, len(evaluation), most)]
    return examples.take(np.flatnonzero(~apart)), examples.take(evaluation)


def _ends_of_groups(examples: Examples, fraction: float) -> NDArray[np.bool_]:
    """Which examples are the last ``fraction`` of their groups, at least one of two."""
    sizes = np.bincount(examples.groups, minlength=len(examples.names))
    counts = np.maximum((sizes * fraction).astype(np.int64), (sizes > 1) & (fraction > 0))
    last = np.cumsum(sizes)[examples.groups] - np.arange(len(examples))  # 1 for a group's last
    return np.asarray(last <= counts[examples.groups])


def _share(examples: Examples, fraction: float) -> int:
    """The examples that a fraction is of all, rounded up; one at least stays for training."""
    return max(min(ceil(fraction * len(examples)), len(examples) - 1), 0)


def _is_fair(examples: Examples, apart: NDArray[np.bool_], fraction: float) -> bool:
    """Whether a division holds out the share that it should, and leaves every class in both parts.

    Rounding down in every group loses up to half of the share, and one of each small group may
    double it.
    """
    count, share = int(apart.sum()), _share(examples, fraction)
    if not share // 2 <= count <= 2 * share or (share and not count):
        return False
    if examples.labels is None:
        return True
    classes, sizes = np.unique(examples.labels, return_counts=True)
    trained = np.isin(classes[sizes > 1], examples.labels[~apart]).all()
    return bool(trained) and not has_lost_a_class(examples.labels, np.flatnonzero(apart))


def _spread(examples: Examples, fraction: float) -> NDArray[np.bool_]:
    """Which examples are held out, evenly spaced: of all, or of each class if there are classes.

    The only example of a class stays for training.
    """
    rows = np.arange(len(examples))
    if examples.labels is not None:
        rows = np.argsort(examples.labels, kind="stable")
        _, which, sizes = np.unique(examples.labels, return_inverse=True, return_counts=True)
        rows = rows[sizes[which[rows]] > 1]
    apart = np.zeros(len(examples), bool)
    count = min(_share(examples, fraction), len(rows))
    apart[rows[space_evenly(len(rows), count)]] = True
    return apart
