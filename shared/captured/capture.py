"""Whether a pass is being captured as a CUDA graph, so that nothing may depend on its numbers."""

import torch
from torch import Tensor


def is_captured(tensor: Tensor) -> bool:
    """Whether what is computed with ``tensor`` now is captured, and computed again with others.

    Shapes must not depend on its numbers then, and no number of the host may be sent to the card.
    """
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
