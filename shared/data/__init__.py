"""Documents with the natural group of each, and the table of data sets that give them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError
from shared.registry import Registry


@dataclass(frozen=True)
class Documents:
    """Texts in a fixed order: the same on every call and on every machine with the same source."""

    texts: Sequence[str]
    groups: Sequence[str]  # the natural id of each text: its module, play, president
    labels: Sequence[int] | None = None  # the class of each text, where the data set has classes

    def __post_init__(self) -> None:
        labels = self.texts if self.labels is None else self.labels
        if not len(self.texts) == len(self.groups) == len(labels):
            sizes = len(self.texts), len(self.groups), len(labels)
            raise DataError(f"as many groups and labels as texts expected, got {sizes}")

    def thin(self, most: int) -> "Documents":
        """Keep ``most`` documents, evenly spaced over the order; all of them if ``most`` is 0."""
        if not 0 < most < len(self.texts):
            return self
        rows = evenly(len(self.texts), most).tolist()
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        return Documents([self.texts[r] for r in rows], [self.groups[r] for r in rows], labels)


def evenly(total: int, count: int) -> NDArray[np.int64]:
    """Return ``count`` of the rows 0 .. total - 1, evenly spaced; distinct if count <= total."""
    return (2 * np.arange(count, dtype=np.int64) + 1) * total // (2 * count)


# The argument is max_samples: how many documents to keep, 0 for all.
DATASETS: Registry[Callable[[int], Documents]] = Registry("dataset", "shared.data")
