"""The flat vector of all trainable parameters, in which each tensor starts on a tile boundary."""

import ctypes
import mmap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod

import torch
from torch import Tensor, nn

from shared.base.errors import ConfigError
from shared.base.flattenable import check_flattenable

TILE = 2048  # elements: every tensor starts at a multiple of it, so kernels work on whole tiles
TILE_BLOCKS = 16  # of the random generator: a tile has one random bit for each element,
TILE_WORDS = 64  # which are 16 blocks of 4 words of 32 bits


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """The addresses of one tensor in the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int  # a multiple of TILE

    @property
    def size(self) -> int:
        """Number of elements, without padding."""
        return prod(self.shape)

    @property
    def stop(self) -> int:
        """The address after the last element; padding follows up to the next tile."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix that lies in the flat vector, as the right factor of a product."""

    values: Tensor  # (height * width,)
    start: int  # flat address of the first element, a multiple of TILE
    shape: tuple[int, int]  # (height, width)
    transposed: bool  # the factor is (width, height), as in x @ W.t()


@dataclass(frozen=True)
class Layout:
    """The address space of the flat vector: tensors in the module's order, zeros between them."""

    tensors: tuple[TensorSpan, ...]

    @classmethod
    def of(cls, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> "Layout":
        """Return the layout of tensors of these names and shapes, one after the other."""
        spans, start = [], 0
        for name, shape in shapes:
            spans.append(TensorSpan(name, tuple(shape), start))
            start += -(-prod(shape) // TILE) * TILE
        return cls(tuple(spans))

    @cached_property
    def size(self) -> int:
        """Length of the flat vector, padding included: a multiple of TILE."""
        return -(-self.tensors[-1].stop // TILE) * TILE if self.tensors else 0

    @cached_property
    def parameters(self) -> int:
        """Number of trainable parameters (d), without padding."""
        return sum(span.size for span in self.tensors)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return every tensor of the layout, by name, as a view of ``flat`` (size,)."""
        return {p.name: flat[p.start : p.stop].view(p.shape) for p in self.tensors}

    def clear_padding_(self, flat: Tensor) -> None:
        """Set the padding between the tensors of ``flat`` (size,) to zero."""
        for span in self.tensors:
            if span.stop % TILE:
                flat[span.stop : -(-span.stop // TILE) * TILE] = 0


@dataclass(frozen=True)
class FlatModel:
    """A module whose trainable parameters are views of ``flat``; a tied one is there once."""

    module: nn.Module
    layout: Layout
    flat: Tensor  # (layout.size,), padding zero

    @cached_property
    def addresses(self) -> dict[int, int]:
        """The flat address of each trainable parameter, by the ``id`` of the parameter."""
        named = dict(self.module.named_parameters())
        return {id(named[span.name]): span.start for span in self.layout.tensors}

    def gather(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return tensors of the layout's names and shapes as one float32 vector (size,)."""
        vector = torch.zeros(self.layout.size, device=self.flat.device)
        for name, view in self.layout.views(vector).items():
            view.copy_(tensors[name])
        return vector


def flatten(module: nn.Module, trainable: Callable[[str], bool] = lambda name: True) -> FlatModel:
    """Move the parameters that ``trainable`` names into one vector and bind them to it.

    The others are frozen (``requires_grad`` off). The module computes what it computed before.
    Each tensor is freed once it is copied, so memory never holds all parameters twice. One without
    elements stays where it is: it would have the address of the next.

    Raises:
        ConfigError: nothing is trainable, the trainable tensors differ in dtype or device, or a
            part of the module cannot be flattened (``check_flattenable``).
    """
    named = dict(module.named_parameters())  # a tied parameter appears once, under its first name
    chosen = {name: p for name, p in named.items() if trainable(name) and p.numel()}
    if not chosen:
        raise ConfigError(f"no parameter is trainable among {sorted(named)}")
    check_flattenable(module, chosen)
    kinds = {(parameter.dtype, parameter.device) for parameter in chosen.values()}
    if len(kinds) != 1:
        raise ConfigError(f"trainable parameters of one dtype and device expected, got {kinds}")
    layout = Layout.of((name, tuple(p.shape)) for name, p in chosen.items())
    ((dtype, device),) = kinds
    flat = ask_for_huge_pages(torch.empty(layout.size, dtype=dtype, device=device))
    layout.clear_padding_(flat)
    for name, view in layout.views(flat).items():
        view.copy_(chosen[name].data)
        chosen[name].data = view
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)
    return FlatModel(module, layout, flat)


HUGE_FROM = 1 << 22  # bytes: page faults of smaller tensors do not matter


def ask_for_huge_pages(tensor: Tensor) -> Tensor:
    """Advise the system to use huge pages for a tensor on the CPU, if it is large; return it.

    Its memory should not have been touched yet.
    """
    size = tensor.numel() * tensor.element_size()
    if tensor.is_cpu and size >= HUGE_FROM and (madvise := _madvise()) is not None:
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (tensor.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        madvise(first, last - first, mmap.MADV_HUGEPAGE)
    return tensor


@cache
def _madvise() -> "ctypes._NamedFuncPointer | None":
    """Return the C library's function, or None if this system has no huge pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise
