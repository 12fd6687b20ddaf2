"""Flower's aggregation strategies as rules on vectors: mean, median, trimmed mean, Krum, Bulyan."""

import gc
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum
from numpy.typing import NDArray

from shared.aggregation import AGGREGATION
from shared.base.options import option

Vectors = NDArray[np.float64]
RECORD, ARRAY, WEIGHT = "arrays", "vector", "num-examples"  # names within Flower's records


@AGGREGATION.register("mean")
def mean(vectors: Vectors, weights: Vectors) -> Vectors:
    """The weighted mean (k,) of vectors (n, k) (McMahan et al. 2017): the bits of Flower's FedAvg.

    It is computed without Flower's messages, which would take a third of the time of a round.
    """
    return average(vectors, weights)


def average(vectors: Iterable[NDArray[np.floating]], weights: Vectors) -> Vectors:
    """The same, from vectors (k,) that come one at a time, so that no two need be in memory."""
    total, shares = np.zeros(0), weights / weights.sum()
    for index, (vector, share) in enumerate(zip(vectors, shares, strict=True)):
        part = vector.astype(np.float64)
        part *= share
        if index:
            total += part
        else:
            total = part
    return total


@AGGREGATION.register("median")
def median(vectors: Vectors, weights: Vectors) -> Vectors:
    """The median of each coordinate; weights do not count (Yin et al. 2018)."""
    return aggregate_by_flower(FedMedian(), vectors, weights)


@AGGREGATION.register("trimmed-mean")
@dataclass(frozen=True)
class TrimmedMean:
    """The mean of each coordinate without its extremes; weights do not count (Yin et al. 2018)."""

    trim_fraction: float = option(0.2, "cut from each side of the mean", at_least=0.0, below=0.5)

    def __call__(self, vectors: Vectors, weights: Vectors) -> Vectors:
        """Aggregate vectors (n, k) to (k,)."""
        return aggregate_by_flower(FedTrimmedAvg(beta=self.trim_fraction), vectors, weights)


@dataclass(frozen=True)
class _Withstanding:
    """The option that rules against liars share."""

    malicious_clients: int = option(1, "sites that may lie", at_least=0)
    keeps_whole_vectors: ClassVar[bool] = True

    @property
    def fewest_vectors(self) -> int:
        """The number of vectors f + 3 without which no liar can be told (Blanchard et al. 2017)."""
        return self.malicious_clients + 3


@AGGREGATION.register("krum")
@dataclass(frozen=True)
class KrumRule(_Withstanding):
    """The vector that is nearest to its neighbours; needs f + 3 sites (Blanchard et al. 2017)."""

    def __call__(self, vectors: Vectors, weights: Vectors) -> Vectors:
        """Aggregate vectors (n, k) to (k,)."""
        strategy = Krum(num_malicious_nodes=self.malicious_clients)
        return aggregate_by_flower(strategy, vectors, weights)


@AGGREGATION.register("multi-krum")
@dataclass(frozen=True)
class MultiKrumRule(_Withstanding):
    """The weighted mean of the vectors that are nearest to their neighbours.

    Of m = ``min-replies`` vectors, or of all n if it is 0, these are m - f - 2 (Blanchard et al.
    2017).
    """

    min_replies: int = 0

    def __call__(self, vectors: Vectors, weights: Vectors) -> Vectors:
        """Aggregate vectors (n, k) to (k,)."""
        f = self.malicious_clients
        strategy = MultiKrum(
            num_malicious_nodes=f,
            num_nodes_to_select=max(1, (self.min_replies or len(vectors)) - f - 2),
        )
        return aggregate_by_flower(strategy, vectors, weights)


@AGGREGATION.register("bulyan")
@dataclass(frozen=True)
class BulyanRule(_Withstanding):
    """Krum's choice, then a trimmed mean; needs 4f + 3 sites (El Mhamdi et al. 2018)."""

    def __call__(self, vectors: Vectors, weights: Vectors) -> Vectors:
        """Aggregate vectors (n, k) to (k,)."""
        strategy = Bulyan(num_malicious_nodes=self.malicious_clients)
        return aggregate_by_flower(strategy, vectors, weights)

    @property
    def fewest_vectors(self) -> int:
        """The number of vectors 4f + 3 that it needs."""
        return 4 * self.malicious_clients + 3


def aggregate_by_flower(strategy: FedAvg, vectors: Vectors, weights: Vectors) -> Vectors:
    """Run one of Flower's strategies on vectors (n, k) with weights (n,); returns (k,).

    Raises:
        RuntimeError: the strategy gave nothing, as it does for too few vectors.
    """
    replies = [_reply(vector, weight) for vector, weight in zip(vectors, weights, strict=True)]
    gc.freeze()  # Flower collects garbage after each array; this heap would take 0.1 s each time
    try:
        arrays, _ = strategy.aggregate_train(1, replies)
    finally:
        gc.unfreeze()
    if arrays is None:
        raise RuntimeError(f"{type(strategy).__name__} gave nothing for {len(replies)} vectors")
    vector: Vectors = arrays[ARRAY].numpy()
    return vector


class LiveArray(Array):
    """An array that strategies read as it is, without a serialised copy: half the time of a round.

    It never leaves this process.
    """

    def __init__(self, vector: Vectors) -> None:
        super().__init__(dtype=str(vector.dtype), shape=vector.shape, stype="live", data=b"")
        self._vector = vector

    def numpy(self) -> Vectors:
        """The vector itself."""
        return self._vector


def _reply(vector: Vectors, weight: float) -> Message:
    record = ArrayRecord()
    record[ARRAY] = LiveArray(vector)
    metrics = MetricRecord({WEIGHT: float(weight)})
    content = RecordDict({RECORD: record, "metrics": metrics})
    return Message(content=content, dst_node_id=1, message_type=MessageType.TRAIN)
