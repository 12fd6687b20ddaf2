"""What the ledger keeps of a round beside its entry: who measured what, and what it cost."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.base.metrics import EvalSums


@dataclass(frozen=True)
class Contribution:
    """One site's valid reply, as it went into a round."""

    round: int
    slot: int
    site: str
    examples: int
    loss: float
    seconds: float
    differences: NDArray[np.floating[Any]]  # (K*q,) float32, as the site sent them
    gradient: bytes = b""  # as the site encoded it; the ledger keeps its digest
    outcome: EvalSums | None = None  # on the site's own held-out examples, where it evaluated

    def order(self) -> tuple[object, ...]:
        """Sorts contributions by slot, and copies of one by all that they say."""
        said = self.differences.tobytes(), self.gradient
        return (self.slot, *said, self.examples, self.loss, self.seconds)

    def row(self) -> tuple[object, ...]:
        """What the ledger keeps; of a gradient its digest."""
        values = np.asarray(self.differences, "<f4").tobytes()
        sent = sha256(self.gradient).digest() if self.gradient else b""
        about = self.round, self.slot, self.site, self.examples
        return (*about, float(self.loss), float(self.seconds), values, sent)


@dataclass(frozen=True)
class Refusal:
    """A reply that was not used, or that did not come."""

    round: int
    site: str
    reason: str  # one of a few words that are counted
    detail: str


@dataclass(frozen=True)
class Rewind:
    """A round in which the run went back to an earlier one."""

    round: int
    back_to: int  # 0: the base model
    scale: float  # all learning rates of later rounds are multiplied by it
    reason: str


@dataclass(frozen=True)
class Metrics:
    """What a round did, but for its evaluation, which comes after it is applied."""

    round: int
    timestamp: str  # ISO 8601, UTC
    loss: float  # of the sites, weighted by examples
    gradient_norm: float  # root mean square of the projected gradients: estimates |gradient|
    learning_rate: float
    clients: int
    forwards: int  # forward passes of all sites
    bytes_up: int  # payload
    bytes_down: int
    seconds: float
