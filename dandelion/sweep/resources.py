"""Where runs go: each slot has its own cores or GPU, and as many threads as its share."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from shared.base.errors import ConfigError
from shared.base.options import Value

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Place:
    """One slot: a run at a time."""

    number: int
    cores: tuple[int, ...]
    gpu: str = ""  # empty: none

    def settings(self) -> dict[str, Value]:
        """What a run here is told; settings that the user gave go first."""
        device: dict[str, Value] = {"device": "cuda"} if self.gpu else {}
        return {"threads": len(self.cores), **device}

    def environment(self) -> dict[str, str]:
        """Variables for the process."""
        threads = dict.fromkeys(THREADS, str(len(self.cores)))
        return threads | ({"CUDA_VISIBLE_DEVICES": self.gpu} if self.gpu else {})


def places_of(
    parallel: int, gpus: Sequence[str] = (), cores: Sequence[int] | None = None
) -> list[Place]:
    """``parallel`` places with equal shares of the cores that this process may use.

    Where there are more places than cores, some share one; GPUs are dealt in turn.

    Raises:
        ConfigError: fewer than one place.
    """
    if parallel < 1:
        raise ConfigError(f"--parallel: at least 1 expected, got {parallel}")
    all_ = sorted(os.sched_getaffinity(0)) if cores is None else list(cores)
    share = max(1, len(all_) // parallel)
    return [
        Place(
            number,
            tuple(all_[(number * share + k) % len(all_)] for k in range(share)),
            gpus[number % len(gpus)] if gpus else "",
        )
        for number in range(parallel)
    ]
