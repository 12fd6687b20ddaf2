"""Exponential, GELU, norms and softmax of rows of float32, as loops that fill vector registers.

Sums of a row are those of LANES partial sums, in one order. So a row's numbers depend on the row
alone: not on the rows beside it, the number of threads, or the width of the registers. Functions
take arrays whose rows are padded to whole lanes.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from shared.directions.kernels.tiles import COLUMNS, LANES

BIAS_BITS = 23  # where a float32's exponent begins
LOG2_E = np.float32(1.44269504)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # add up to ln 2
TO_WHOLE = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds to a whole number
WHOLE_BITS = np.int32(0x4B400000)  # of TO_WHOLE
SMALLEST = np.float32(-88.0)  # from here on e**x is 0
LARGEST = np.float32(88.0)
MASKED = np.float32(-1e30)  # what a softmax gives no weight
ONE, ZERO, NOT_A_NUMBER = np.float32(1), np.float32(0), np.float32("nan")
# Cephes expf (Moshier 1989): e**f is 1 + f + f² * p(f) up to |f| = ln(2) / 2
P0, P1, P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
P3, P4, P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
CUBIC = np.float32(0.044715)
MINUS_TWICE_ROOT = np.float32(-1.5957691216057308)  # −2·√(2/π)


@intrinsic
def _bits_of(context, number):
    """Take the bits of a float32 for an integer."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _number_of(context, bits):
    """Take an integer for the bits of a float32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@njit(inline="always")
def exponential(x):
    """Return e**x, within two units in the last place; 0 up to SMALLEST."""
    x = min(max(x, SMALLEST), LARGEST)
    shifted = x * LOG2_E + TO_WHOLE
    whole = shifted - TO_WHOLE
    f = x - whole * LN2_HIGH
    f = f - whole * LN2_LOW
    p = ((((P0 * f + P1) * f + P2) * f + P3) * f + P4) * f + P5
    power = np.int32(np.int32(_bits_of(shifted) - WHOLE_BITS) + np.int32(127))
    return (p * (f * f) + f + ONE) * _number_of(np.int32(power << np.int32(BIAS_BITS)))


@njit(error_model="numpy")
def gelu_(x):
    """Replace x (n,) by its GELU, tanh form: x / (1 + e**(−2u)), u = √(2/π)·(x + 0.044715x³)."""
    for i in range(x.size):
        v = x[i]
        x[i] = v / (ONE + exponential(MINUS_TWICE_ROOT * (v + CUBIC * v * v * v)))


@njit(inline="always")
def _sum_lanes(x, lanes):
    """Sum of x (n,): LANES partial sums, then halves upon halves; ``lanes`` is overwritten."""
    lanes[:] = ZERO
    for at in range(0, x.size, LANES):
        for lane in range(LANES):
            lanes[lane] += x[at + lane]
    width = LANES // 2
    while width:
        for lane in range(width):
            lanes[lane] += lanes[width + lane]
        width //= 2
    return lanes[0]


@njit(error_model="numpy")
def norm_rows(out, x, gain, bias, eps):
    """Write the layer norm (Ba et al. 2016) of each row of x (m, n): mean 0, variance 1, affine.

    A row whose variance overflows has no norm: all of it becomes NaN, as in torch.
    """
    lanes, n = np.empty(LANES, np.float32), x.shape[1]
    share = ONE / np.float32(n)
    for row in range(x.shape[0]):
        source, target = x[row], out[row]
        mean = _sum_lanes(source, lanes) * share
        for i in range(n):
            target[i] = (source[i] - mean) * (source[i] - mean)
        variance = _sum_lanes(target, lanes) * share
        factor = ONE / np.sqrt(variance + eps) if np.isfinite(variance) else NOT_A_NUMBER
        for i in range(n):
            target[i] = (source[i] - mean) * factor * gain[i] + bias[i]


@njit(inline="always")
def _raise_columns_(x, scale):
    """Replace x (m, COLUMNS) by e**(scale * (x − its column's maximum))."""
    most = x[0].copy()
    for row in range(1, x.shape[0]):
        for i in range(COLUMNS):
            most[i] = max(most[i], x[row, i])
    for row in range(x.shape[0]):
        for i in range(COLUMNS):
            x[row, i] = exponential(scale * (x[row, i] - most[i]))


@njit(error_model="numpy")
def weigh_columns_(x, scale, factors):
    """Replace x (m, COLUMNS) by the softmax of its columns times ``scale``, but for ``factors``."""
    _raise_columns_(x, scale)
    factors[:] = ZERO
    for row in range(x.shape[0]):
        for i in range(COLUMNS):
            factors[i] += x[row, i]
    for i in range(COLUMNS):
        factors[i] = ONE / factors[i]


@njit(error_model="numpy")
def exponentials_(x):
    """Replace x (n,) by e**(x − max x) and return their sum and max x."""
    lanes = np.empty(LANES, np.float32)
    lanes[:] = x[:LANES]
    for at in range(LANES, x.size, LANES):
        for lane in range(LANES):
            lanes[lane] = max(lanes[lane], x[at + lane])
    most = lanes[0]
    for lane in range(1, LANES):
        most = max(most, lanes[lane])
    for i in range(x.size):
        x[i] = exponential(x[i] - most)
    return _sum_lanes(x, lanes), most
