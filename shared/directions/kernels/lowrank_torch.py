"""Low-rank directions in plain torch, for any device: products of signs are exact, bits agree."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 1 << 22  # elements of a product that are built at a time


@torch.no_grad()
def add_products_(
    out: Tensor, source: Tensor, skip: int, a: Tensor, b: Tensor, scales: NDArray[np.float64]
) -> None:
    """Write source + Σ_k scales[k] * a[k] b[k]ᵀ into ``out`` (n,), a part of a matrix's rows.

    ``a`` (K, rows) has the rows that ``out`` has a part of, ``b`` (K, width) all columns; ``out``
    begins ``skip`` elements into its first row.
    """
    width = b.shape[1]
    step = max(1, CHUNK // width)
    for top in range(0, a.shape[1], step):
        rows = a[:, top : top + step]
        low = max(top * width - skip, 0)
        high = min((top + rows.shape[1]) * width - skip, out.numel())
        total, begin = source[low:high], low + skip - top * width
        for k, scale in enumerate(scales.astype(np.float32).tolist()):
            product = (rows[k] * scale)[:, None] * b[k]
            total = total + product.view(-1)[begin : begin + high - low]
        out[low:high] = total
