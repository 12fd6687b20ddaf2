"""Achieved memory bandwidth of each kernel against a plain copy on the same device."""

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from dandelion.bench.rows import Row, alternate
from shared.directions import DIRECTIONS, Key
from shared.errors import ConfigError
from shared.flat import Layout

SCALE, FUSED = 1e-3, 64
COPY = "copy"
SHAPES = {"cpu": (5000, 4000), "cuda": (25_000, 20_000)}  # of the matrix: 20 M, 500 M parameters


def bandwidth(device: str = "cpu", repeats: int = 7) -> list[Row]:
    """Medians of seconds per call; the ratio is to the copy's bandwidth within the same turn.

    Each reads and writes every parameter once. 64 directions fused do so too: there the draws take
    longer than memory, and the note has directions per second beside the bandwidth.

    Raises:
        ConfigError: no such device here.
    """
    if device not in SHAPES or (device == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(
            f"--device cpu, or cuda where torch sees a CUDA device, expected; got {device!r}; "
            f"torch {torch.__version__} sees {torch.cuda.device_count()} of them"
        )
    layout = Layout.of([("matrix", SHAPES[device])])
    source = torch.zeros(layout.size, device=device)
    times = alternate(ways(layout, source), repeats)
    bytes_ = 8 * layout.size
    return [
        Row(
            f"{name}, {layout.size / 1e6:.0f} M on {name_of(device)}",
            median(seconds),
            median(copy / mine for copy, mine in zip(times[COPY], seconds, strict=True)),
            f"{bytes_ / median(seconds) / 1e9:.4g} GB/s; ratio to the copy's",
        )
        for name, seconds in times.items()
    ]


def ways(layout: Layout, source: Tensor) -> dict[str, Callable[[], object]]:
    """The copy, and each family's kernels; each returns when the device is done."""
    out, keys = torch.empty_like(source), [Key(1, 1, 0, k) for k in range(FUSED)]
    found: dict[str, Callable[[], object]] = {COPY: partial(out.copy_, source)}
    for name in ("rademacher", "lowrank"):
        family = DIRECTIONS[name](layout)
        found[f"{name}: perturb"] = partial(family.perturbed_, out, source, 0, keys[0], SCALE)
        found[f"{name}: add one"] = partial(family.add_to_, out, keys[:1], [SCALE])
        found[f"{name}: add {FUSED} fused"] = partial(family.add_to_, out, keys, [SCALE] * FUSED)
    wait = torch.cuda.synchronize if source.is_cuda else nothing
    return {name: partial(_timed, way, wait) for name, way in found.items()}


def nothing() -> None:
    """Wait for nobody: a CPU kernel is done when it returns."""


def name_of(device: str) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} cores"


def _timed(way: Callable[[], object], wait: Callable[[], object]) -> None:
    way()
    wait()
