"""Fixtures of the optimizers' tests: a layout, vectors over it, one compute thread."""

import pytest
import torch

from shared.base.flat import Layout

LAYOUT = Layout.of([("w", (48, 96)), ("b", (96,)), ("e", (500, 130)), ("s", ()), ("c", (3, 5, 7))])


@pytest.fixture(autouse=True)
def threads():
    """One thread unless a test asks for more: short operations wait long for a busy second core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


def random_vector(seed):
    vector = torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(seed))
    LAYOUT.clear_padding_(vector)
    return vector
