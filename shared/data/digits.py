"""Handwritten digits, 8 by 8 (Alpaydin and Kaynak 1998; the part that scikit-learn carries)."""

import gzip

import numpy as np

from shared.carriers import CARRIERS
from shared.data import DATASETS, Documents, Source
from shared.data.pictures import Pictures
from shared.packages import fetch

FILE = "sklearn/datasets/data/digits.csv.gz"
WHITE = 16


def pictures() -> Pictures:
    """1,797 digits; 64 pixels from 0 to 16 each."""
    with gzip.open(fetch(CARRIERS["digits"]) / FILE, "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.int64)
    pixels = rows[:, :-1].reshape(-1, 8, 8).astype(np.uint8)
    return Pictures(pixels, WHITE, rows[:, -1], tuple("0123456789"))


def digits(max_samples: int, by: str = "digit") -> Documents:
    """Each digit as eight lines of eight characters."""
    del by
    return pictures().documents().thin(max_samples)


DATASETS.register("digits")(
    Source(
        digits, "packaged", "handwritten digits, 8 by 8, also as text", ("digit",),
        "1,797 pictures", "BSD-3-Clause (scikit-learn); data: CC BY 4.0",
        carrier=CARRIERS["digits"],
    )
)  # fmt: skip
