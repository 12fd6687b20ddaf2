"""Small grey pictures with a class each, and what a language model reads of them.

A picture as text is its rows of characters, from a blank for black to ``@`` for white: one can see
it, and any model of bytes can be trained to say which class it is.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.data import Documents

RAMP = " .:-=+*#%@"  # each a byte, brighter to the right


@dataclass(frozen=True)
class Pictures:
    """Pictures in a fixed order."""

    pixels: NDArray[np.uint8]  # (n, height, width)
    white: int  # the largest value that a pixel can have
    labels: NDArray[np.int64]  # (n,)
    classes: tuple[str, ...]
    held_out: NDArray[np.bool_] | None = None  # (n,), what the set keeps for evaluation

    def features(self) -> NDArray[np.float32]:
        """Pixels as numbers from 0 to 1 (n, height * width), for classifiers that are no text."""
        return (self.pixels.reshape(len(self.pixels), -1) / self.white).astype(np.float32)

    def documents(self) -> Documents:
        """Each picture as rows of characters; its class is its natural id too."""
        places = self.pixels.astype(np.int64) * len(RAMP) // (self.white + 1)
        drawn = np.array(list(RAMP))[places]
        return Documents(
            ["\n".join("".join(row) for row in picture) for picture in drawn],
            [self.classes[label] for label in self.labels],
            self.labels.tolist(),
            self.classes,
            None if self.held_out is None else self.held_out.tolist(),
        )


def halved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures (n, 2h, 2w) at half the size (n, h, w): means of four pixels."""
    n, height, width = pixels.shape
    fours = pixels.reshape(n, height // 2, 2, width // 2, 2)
    small: NDArray[np.uint8] = fours.mean(axis=(2, 4)).astype(np.uint8)
    return small
