"""One compute thread per test process: with two, and anything else on the machine, tests crawl.

CUDA kernels run by Triton's interpreter; it looks at its variable when triton is first imported.
No example of Hypothesis has a time limit: on a busy machine it would fail for nothing.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from hypothesis import settings

settings.register_profile("dandelion", deadline=None)
settings.load_profile("dandelion")
torch.set_num_threads(1)


@pytest.fixture
def one_thread():
    """One compute thread, unless the test sets another number; put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
