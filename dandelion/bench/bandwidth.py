"""Achieved memory bandwidth of each kernel against a plain copy on the same device."""

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from dandelion.bench.rows import BenchRow, alternate
from shared.base.errors import ConfigError
from shared.base.flat import Layout, Matrix
from shared.directions import DIRECTIONS, Multiplies
from shared.estimation.perturber import THREAD_SCRATCH
from shared.randomness.streams import Key

SCALE, FUSED = 1e-3, 64
COPY, PRODUCT = "copy", "product of 16 rows"
SHAPES = {"cpu": (5120, 4096), "cuda": (25_600, 20_480)}  # of the matrix: 21 M, 524 M parameters
ROWS = 16  # of activations that are multiplied by it


def bandwidth(device: str = "cpu", repeats: int = 7) -> list[BenchRow]:
    """Medians of seconds per call; the ratio is to the copy's bandwidth within the same turn.

    Each kernel reads and writes every parameter once; a product only reads it. With 64 fused
    directions, drawing takes longer than memory access.

    Raises:
        ConfigError: this machine has no such device.
    """
    if device not in SHAPES or (device == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(
            f"--device cpu, or cuda if torch sees a CUDA device, expected; got {device!r}; "
            f"torch {torch.__version__} sees {torch.cuda.device_count()} of them"
        )
    layout = Layout.of([("matrix", SHAPES[device])])
    source = torch.zeros(layout.size, device=device)
    times = alternate(ways(layout, source), repeats)
    every = 4 * layout.size
    return [
        BenchRow(
            f"{name}, {layout.size / 1e6:.0f} M on {name_of(device)}",
            median(seconds),
            median(share * a / b for a, b in zip(times[COPY], seconds, strict=True)),
            f"{2 * share * every / median(seconds) / 1e9:.4g} GB/s; ratio to the copy's",
        )
        for name, seconds in times.items()
        for share in [0.5 if PRODUCT in name else 1.0]
    ]


def ways(layout: Layout, source: Tensor) -> dict[str, Callable[[], object]]:
    """The copy and each family's kernels as calls that return when the device is done."""
    out, keys = torch.empty_like(source), [Key(1, 1, 0, k) for k in range(FUSED)]
    calls: dict[str, Callable[[], object]] = {COPY: partial(out.copy_, source)}
    for name in ("rademacher", "lowrank"):
        family = DIRECTIONS[name](layout)
        calls[f"{name}: perturb"] = partial(family.perturb_, out, source, 0, keys[0], SCALE)
        calls[f"{name}: add one"] = partial(family.add_to_, out, keys[:1], [SCALE])
        calls[f"{name}: add {FUSED} fused"] = partial(family.add_to_, out, keys, [SCALE] * FUSED)
    calls |= _products(layout, source)
    wait = torch.cuda.synchronize if source.is_cuda else do_nothing
    return {name: partial(_call_and_wait, way, wait) for name, way in calls.items()}


def _products(layout: Layout, source: Tensor) -> dict[str, Callable[[], object]]:
    """A plain product, and one that adds signs on the way if the device has a kernel for it."""
    shape = SHAPES[source.device.type]
    x, scratch = source.new_ones(ROWS, shape[1]), source.new_empty(2 * THREAD_SCRATCH)
    products: dict[str, Callable[[], object]] = {
        f"plain {PRODUCT}": partial(torch.mm, x, source.view(shape).t())
    }
    signs = DIRECTIONS["rademacher"](layout)
    if isinstance(signs, Multiplies):
        matrix = Matrix(source, 0, shape, transposed=True)
        perturbed = partial(signs.product, x, matrix, None, Key(1, 1, 0, 0), SCALE, scratch)
        if perturbed() is not None:
            products[f"rademacher: {PRODUCT}"] = perturbed
    return products


def do_nothing() -> None:
    """Stands for waiting: a CPU kernel is done when it returns."""


def name_of(device: str) -> str:
    """The name of the device, or its number of cores."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} cores"


def _call_and_wait(way: Callable[[], object], wait: Callable[[], object]) -> None:
    way()
    wait()
