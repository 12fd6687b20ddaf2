"""The kernels that work on the device of a tensor; a family without its own takes plain torch."""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from shared.randomness.streams import Key

KERNELS = "shared.directions.kernels"
SUFFIXES = {"cpu": "cpu", "cuda": "triton"}  # kind of device -> how its kernels' modules end
PRODUCTS = {"cpu": "rademacher_products", "cuda": "rademacher_products_triton"}


def words_on(key: Key, blocks: Tensor) -> Tensor:
    """Draw the words (4, n) of a key's blocks (n,), int64, on the device where ``blocks`` is.

    They equal those of ``shared.randomness.philox.words`` to the bit. A family of directions that
    has no kernels of its own can be made of them alone.
    """
    module = import_module(f"{KERNELS}.{'philox_cpu' if blocks.is_cpu else 'plain_torch'}")
    words: Tensor = module.words(key, blocks)
    return words


def kernels_for(tensor: Tensor, family: str = "rademacher") -> ModuleType:
    """Return the module with a family's kernels for the device of ``tensor``.

    Raises:
        ValueError: the tensor is not contiguous, or in no dtype that these kernels know.
    """
    kernels = kernels_at(family, tensor.device.type)
    is_known = tensor.dtype is torch.bfloat16 and getattr(kernels, "HAS_BFLOAT16", False)
    if not (is_known and tensor.is_contiguous()):
        check_tensor(tensor)
    return kernels


def check_tensor(tensor: Tensor) -> None:
    """Refuse a tensor whose memory kernels cannot address.

    Raises:
        ValueError: the tensor is not contiguous or not in float32.
    """
    if tensor.dtype is not torch.float32 or not tensor.is_contiguous():
        raise ValueError(f"contiguous float32 expected, got {tensor.dtype} {tensor.stride()}")


def check_pairs(keys: Sequence[Key], coefficients: Sequence[float]) -> None:
    """Refuse keys that do not come with one coefficient each.

    Raises:
        ValueError: there are more of the ones than of the others.
    """
    if len(keys) != len(coefficients):
        raise ValueError(f"{len(keys)} keys came with {len(coefficients)} coefficients")


def check_source(out: Tensor, source: Tensor) -> None:
    """Refuse a source that is not as long as what is written.

    Raises:
        ValueError: their sizes differ.
    """
    if out.numel() != source.numel():
        raise ValueError(f"out {tuple(out.shape)} does not fit source {tuple(source.shape)}")


def check_ids(rows: Tensor, ids: Tensor) -> None:
    """Refuse ids that do not name each row.

    Raises:
        ValueError: there are more of the ones than of the others.
    """
    if rows.shape[:-1] != ids.shape:
        raise ValueError(f"ids {tuple(ids.shape)} do not name rows {tuple(rows.shape)}")


@cache
def kernels_at(family: str, device: str) -> ModuleType:
    """Return the fastest kernels of a family for a kind of device: its own, or plain torch."""
    suffix = SUFFIXES.get(device)
    if suffix is None or (suffix == "triton" and find_spec("triton") is None):
        return import_module(f"{KERNELS}.plain_torch")
    return import_module(f"{KERNELS}.{family}_{suffix}")


@cache
def products_at(device: str) -> ModuleType | None:
    """Return the module that multiplies with perturbed matrices on a kind of device, if any."""
    module = PRODUCTS.get(device)
    if module is None or (device == "cuda" and find_spec("triton") is None):
        return None
    return import_module(f"{KERNELS}.{module}")
