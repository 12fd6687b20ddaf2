"""A layout, gradient-like numbers over it, and every registered codec as a parameter."""

import pytest
import torch

from shared.base.flat import Layout
from shared.codecs import CODECS

LAYOUT = Layout.of([("w", (48, 96)), ("b", (96,)), ("e", (300, 13)), ("s", ())])
codecs = pytest.mark.parametrize(
    "codec", [CODECS[n](LAYOUT) for n in CODECS.names()], ids=CODECS.names()
)


def vector(seed=0, spread=6.0):
    """Gradient-like numbers over many magnitudes, padding zero."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(LAYOUT.size, generator=generator)
    numbers *= torch.exp(spread * torch.randn(LAYOUT.size, generator=generator))
    LAYOUT.clear_padding_(numbers)
    return numbers
