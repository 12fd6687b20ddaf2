"""Newton-Schulz orthogonalisation whose matrix products are exact, so no order of summing matters.

Jordan et al. 2024, "Muon", https://kellerjordan.github.io/posts/muon/: five steps of
X <- aX + (bA + cA^2)X, where A = XX^T, move every singular value of X into about 0.7 .. 1.2.
A product of float32 matrices depends on the device and on the threads. Here every factor lies on
the grid of multiples of 2^-25 and is held in float64, so that

    each product of two entries is a multiple of 2^-50, and
    each partial sum of row i times column j is at most |row i| |column j| (Cauchy-Schwarz), where
    |X| <= 1.25, |A| <= 1.57, |bA + cA^2| <= 2.81 (spectral norms, which bound rows and columns):
    below 8 = 2^53 * 2^-50 for XX^T (1.57), AA (2.45) and BX (3.52).

So every partial sum is a float64, whatever the inner dimension, the blocking or fused
multiply-adds. The bound on X holds from step to step: the quintic maps [0, 1.25] into [0, 1.203],
and rounding to the grid moves a singular value by at most 2^-26 (15.2 m + sqrt(mn)), m the shorter
side: under 0.012 for fewer than LIMIT elements. All else is element-wise, each operation rounded
alone. An entry of the normalised matrix is off by 2^-26; that is noise of spectral norm about
2^-27 (sqrt(m) + sqrt(n)), for an embedding of 50257 x 768 some 2e-6 beside singular values of 0.04.
"""

import math

import torch
from torch import Tensor

from shared.optimizers.gradient import CHUNK

STEPS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)
GRID = 2.0**-25
LIMIT = 2**31  # elements of a matrix: up to here the integer sum of squares cannot overflow


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return ``matrix`` (m, n) with its singular values moved near 1.

    Costs 5 (4 m^2 n + 2 m^3) float64 operations, m the shorter side, and 16 bytes per element while
    it lasts. Zeros stay zeros; an entry that is not finite gives NaN there and zeros elsewhere.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalise(matrix.T).T
    norm = frobenius(matrix)
    if norm == 0 or not math.isfinite(norm):
        return matrix * 0
    x = to_grid_(matrix.to(torch.float64, copy=True).mul_(1 / norm))
    for _ in range(STEPS):
        x = _step(x)
    return x.to(matrix.dtype)


def frobenius(matrix: Tensor) -> float:
    """Return the Frobenius norm from above, from a sum of integers that no order can change.

    Entries are counted in units of 2^-16 of the power of two above the largest, rounded up; so the
    result exceeds the norm by at most sqrt(mn) such units.
    """
    peak = float(matrix.abs().max())
    if peak == 0 or not math.isfinite(peak):
        return peak
    exponent = math.frexp(peak)[1] - 16
    total = torch.zeros((), dtype=torch.int64, device=matrix.device)
    for part in torch.split(matrix.ravel(), CHUNK):
        units = (part.abs().double() * math.ldexp(1.0, -exponent)).ceil_().long()
        total += units.mul_(units).sum()
    return math.ldexp(math.sqrt(int(total)), exponent)


def to_grid_(x: Tensor) -> Tensor:
    """Round ``x`` (float64) to multiples of GRID, ties to even, in place."""
    return x.mul_(1 / GRID).round_().mul_(GRID)


def _step(x: Tensor) -> Tensor:
    """One quintic step of ``x`` (m, n), m <= n, which is overwritten."""
    a, b, c = QUINTIC
    gram = to_grid_(x @ x.T)
    square = gram @ gram
    curve = to_grid_(gram.mul_(b).add_(square.mul_(c)))
    return to_grid_((curve @ x).add_(x.mul_(a)))
