"""A small GPT-2's next-token losses by compiled code, if the module computes what that does."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function

from shared.base.flat import TILE
from shared.directions.kernels.tiles import COLUMNS, LANES, is_supported
from shared.models.gpt2 import LightGPT2, Shape

# Parameters, each tensor in whole tiles. A perturber writes all of so few into its scratch, so
# losses at every point are computed in one way, which their differences rely on.
MOST_PARAMETERS = 1 << 18


def compile_losses_(module: nn.Module) -> None:
    """Let ``next_token`` ask compiled code for the losses of a module, if there is such code.

    There is for a GPT-2 of ours of few parameters, on a processor with AVX-512.
    """
    if isinstance(module, LightGPT2) and is_supported() and _is_even(module.shape):
        tiles = sum(-(-parameter.numel() // TILE) for parameter in module.parameters())
        if tiles * TILE <= MOST_PARAMETERS:
            module.compiled_losses = CompiledLosses(module)


def _is_even(shape: Shape) -> bool:
    """Whether rows and heads fill whole registers."""
    return shape.width % COLUMNS == 0 and shape.width % (shape.heads * LANES) == 0


class CompiledLosses:
    """Losses of one module's next tokens in one call, instead of some fifty of torch.

    An example's losses have the same bits in any batch, at any number of threads. They equal
    torch's to rounding: sums of a product run in one order, and GELU, norms and softmax are
    computed as in ``shared.models.kernels.elementary``.
    """

    def __init__(self, module: LightGPT2) -> None:
        shape = module.shape
        self._kinds = [type(part) for part in _parts(module)]
        self._shape = shape.layers, shape.width, shape.heads, shape.vocabulary
        self._positions = shape.positions
        self._packed, self._room = torch.empty(0), torch.empty(0)

    def __call__(self, module: nn.Module, blocks: Tensor) -> Tensor | None:
        """Return the loss (B, T) float32 of predicting the token after each; 0 at the last.

        None if torch must compute them: a gradient is wanted, parameters are replaced on the way,
        a part has hooks or another ``forward``, or the blocks are none that the model reads.
        """
        tensors = self._tensors(module)
        if not tensors or not self._can_read(blocks) or has_torch_function(tensors):
            return None
        from shared.models.kernels.gpt2_cpu import token_losses

        self._provide(blocks.shape[1])
        losses = torch.empty(blocks.shape)
        addresses = np.array([tensor.data_ptr() for tensor in tensors], np.int64)
        places = self._packed.data_ptr(), self._room.data_ptr()
        is_done = token_losses(
            losses.data_ptr(), blocks.data_ptr(), addresses, *places, *blocks.shape, *self._shape
        )
        return losses if is_done else None

    def _can_read(self, blocks: Tensor) -> bool:
        return (
            torch.is_inference_mode_enabled()
            and not torch.is_autocast_enabled("cpu")
            and blocks.is_cpu
            and blocks.dtype is torch.int64
            and blocks.is_contiguous()
            and len(blocks) > 0
            and 1 < blocks.shape[1] <= self._positions
        )

    def _tensors(self, module: nn.Module) -> list[Tensor]:
        """All parameters in the module's order; none if the module is not what it was made as."""
        parts = _parts(module)
        if [type(part) for part in parts] != self._kinds or not all(map(_is_plain, parts)):
            return []
        every = [p for part in parts for p in part._parameters.values() if p is not None]
        *tensors, output = every
        return tensors if output is tensors[0] and all(map(_is_float32, tensors)) else []

    def _provide(self, length: int) -> None:
        """Make room for the packed matrices and for an example of ``length`` tokens."""
        from shared.models.kernels.gpt2_cpu import pack_size, room_size

        layers, width, heads, vocabulary = self._shape
        if not self._packed.numel():
            self._packed = torch.zeros(pack_size(layers, width, vocabulary))
        if self._room.numel() < (size := room_size(length, width, heads, vocabulary)):
            self._room = torch.zeros(size)


def _parts(module: nn.Module) -> list[nn.Module]:
    """The module and all below it, in the order of its parameters; faster than ``modules``."""
    parts = [module]
    for child in module._modules.values():
        parts += [] if child is None else _parts(child)
    return parts


def _is_plain(part: Any) -> bool:
    """Whether a part's numbers are what its class computes of its input."""
    own = part.__dict__
    return not ("forward" in own or own["_forward_hooks"] or own["_forward_pre_hooks"])


def _is_float32(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float32 and tensor.is_cpu and tensor.is_contiguous()
