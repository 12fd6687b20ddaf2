"""Work shared out among the devices of a process: one thread for each, at the same time.

What one piece of work gives depends on its number alone, so the results are those of one device
after the other, in the same order. Torch keeps the number of its threads, its modes, the current
card and its stream for each thread of Python; so does a thread here, for as long as it lives.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

W = TypeVar("W")
T = TypeVar("T")
Share = Callable[[W, range], Sequence[T]]  # results of some numbers' work, in their order


@dataclass
class Helper(Generic[W]):
    """A worker on a device beside the first, and the thread that alone uses it.

    Attributes:
        worker: what measures there.
        device: where it is.
        threads: compute threads of the device's thread, as those of the process.
    """

    worker: W
    device: torch.device
    threads: int
    _pool: ThreadPoolExecutor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        name = f"dandelion-{self.device}"
        self._pool = ThreadPoolExecutor(1, name, _set_up_thread, (self.device, self.threads))

    def start(self, work: Callable[[W], T]) -> "Future[T]":
        """Begin work(worker) in the device's thread, after what was started before."""
        return self._pool.submit(work, self.worker)


def _set_up_thread(device: torch.device, threads: int) -> None:
    """Set what torch keeps for each thread; kernels of ours are launched on the current card."""
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)


def do_everywhere(helpers: Sequence[Helper[W]], work: Callable[[W], object]) -> None:
    """Do work(worker) on every helper's device at once; return when all are done.

    Raises:
        Exception: what the work of the first helper that failed has raised.
    """
    futures = [helper.start(work) for helper in helpers]
    wait(futures)
    for future in futures:
        future.result()


def share_out(own: W, helpers: Sequence[Helper[W]], count: int, work: "Share[W, T]") -> list[T]:
    """The results of ``count`` pieces of work, in the order of their numbers.

    Of N workers, the first is ``own`` and works in this thread; worker n does n, n + N, n + 2N, …

    Raises:
        Exception: what some work has raised; no worker is in use any more.
    """
    workers = 1 + len(helpers)
    numbers = [range(first, count, workers) for first in range(workers)]
    futures = [
        helper.start(lambda worker, mine=mine: work(worker, mine))  # type: ignore[misc]
        for helper, mine in zip(helpers, numbers[1:], strict=True)
    ]
    try:
        shares = [work(own, numbers[0])]
    finally:
        wait(futures)
    shares += [future.result() for future in futures]
    return [shares[number % workers][number // workers] for number in range(count)]
