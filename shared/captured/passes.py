"""Forward passes on a card as CUDA graphs: the host starts a pass at once, not kernel by kernel.

A model of a few hundred million parameters computes faster than Python can start its kernels. A
graph holds all launches of a pass, with the addresses that they read: the parameters, the batch,
and the key and scale of a perturbed point, which lie in a slot on the card. So one graph serves all
points (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/).
"""

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

LOG = logging.getLogger("dandelion")
CAPTURE_FROM = 3  # uses of a shape: a capture takes as long as a few passes
COMPARED, TOLERANCE = 4, 1e-5  # of the first results of a captured pass; relative
EVICTED = 10  # how many times as many uses it takes after an eviction
MOST_GRAPHS = 8  # of batches of different shapes, which share their memory

Pass = Callable[[Tensor], Tensor]  # of a batch (B, …) on the card; it must not wait for the card


class CapturedPass(Protocol):
    """A pass that was captured for a batch of one shape."""

    def __call__(self, rows: Tensor) -> Tensor:
        """Compute with this batch; the result is overwritten by the next call of any pass."""


@dataclass
class CapturedPasses:
    """Passes by name and shape of their batch, captured when a shape was there CAPTURE_FROM times.

    The one that was not used for longest makes room; it must be wanted EVICTED times more often to
    be captured again. Its first results are compared with plain ones. A pass that cannot be
    captured, since it waits for the card, or that differs, is computed each time from then on.

    Attributes:
        capture: makes a captured pass of a pass and a batch.
        is_possible: False if nothing is to be captured.
    """

    capture: Callable[[Pass, Tensor], CapturedPass]
    is_possible: bool = True
    _passes: OrderedDict[Hashable, CapturedPass] = field(
        default_factory=OrderedDict, init=False, repr=False
    )
    _uses: Counter[Hashable] = field(default_factory=Counter, init=False, repr=False)
    _compared: Counter[Hashable] = field(default_factory=Counter, init=False, repr=False)

    @classmethod
    def on(cls, device: torch.device, *, allowed: bool = True) -> "CapturedPasses":
        """Passes on a device; they are captured if it is a CUDA device, and ``allowed``."""
        is_possible = allowed and device.type == "cuda"
        return cls(GraphMaker(device) if is_possible else _refuse, is_possible)

    def run(self, name: Hashable, compute: Pass, rows: Tensor) -> Tensor:
        """Return compute(rows); ``name`` says what else the result depends on.

        Whatever ``compute`` reads beside its batch must stay at its address for each name.
        """
        if not self.is_possible:
            return compute(rows)
        key = (name, rows.shape, rows.dtype)
        self._uses[key] += 1
        if key not in self._passes and self._uses[key] >= CAPTURE_FROM:
            self._capture(key, compute, rows)
        if key not in self._passes:
            return compute(rows)
        self._passes.move_to_end(key)
        if self._compared[key] < COMPARED:
            return self._compare(key, compute, rows)
        return self._passes[key](rows)

    def _compare(self, key: Hashable, compute: Pass, rows: Tensor) -> Tensor:
        """Return the plain result, and go on without captured passes if that of ``key`` differs."""
        self._compared[key] += 1
        captured, plain = self._passes[key](rows).clone(), compute(rows)
        if not torch.allclose(captured, plain, rtol=TOLERANCE, atol=0.0, equal_nan=True):
            LOG.warning("passes as CUDA graphs give %s, not %s: not used", captured, plain)
            self.is_possible = False
        return plain

    def _capture(self, key: Hashable, compute: Pass, rows: Tensor) -> None:
        try:
            self._passes[key] = self.capture(compute, rows)
        except RuntimeError as error:
            LOG.info("passes are not captured as CUDA graphs: %s", error)
            self.is_possible = False
            self._passes.clear()
            return
        if len(self._passes) > MOST_GRAPHS:
            evicted, _ = self._passes.popitem(last=False)
            self._uses[evicted] = -EVICTED * CAPTURE_FROM
            self._compared[evicted] = 0


def _refuse(compute: Pass, rows: Tensor) -> CapturedPass:
    raise RuntimeError(f"a CUDA device expected, got {rows.device}")


CAPTURING = threading.Lock()  # "only one capture may be underway at a time in the process": torch


@dataclass
class GraphMaker:
    """Captures passes as CUDA graphs of one card that share one pool of memory, and one stream."""

    device: torch.device
    _pool: Any = None
    _side: Any = None

    def __call__(self, compute: Pass, rows: Tensor) -> CapturedPass:
        """Capture a pass with a batch of its own.

        Raises:
            RuntimeError: the pass waits for the card or does something else that no graph can.
        """
        own = rows.clone()
        with torch.cuda.device(self.device), CAPTURING:
            graph, out = self._capture(compute, own)

        def start(rows: Tensor) -> Tensor:
            own.copy_(rows)
            with torch.cuda.device(self.device):  # whose current stream it is started on
                graph.replay()
            return out

        return start

    def _capture(self, compute: Pass, own: Tensor) -> tuple[Any, Tensor]:
        """A graph of a pass, and where its result will be; the card is the current one.

        Torch's own stream for captures is of the card that was first current in the process.
        """
        current = torch.cuda.current_stream()
        if self._side is None:
            self._side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side, mode = self._side, "thread_local"  # other threads may allocate on their cards
        side.wait_stream(current)
        with torch.cuda.stream(side):  # libraries set themselves up at their first call
            compute(own)
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode=mode):
            out = compute(own)
        self._pool = graph.pool()
        return graph, out
