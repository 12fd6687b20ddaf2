"""The sites' loss differences become one entry, by Flower's own strategies on small vectors."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum
from numpy.typing import NDArray
from torch import Tensor

from server.ledger.records import Contribution
from shared.config.schema import Config
from shared.protocol.entry import SlotDifferences
from shared.randomness.streams import SHARED_SLOT

RULES: dict[str, Callable[[Config], FedAvg]] = {
    "mean": lambda config: FedAvg(),
    "median": lambda config: FedMedian(),
    "trimmed-mean": lambda config: FedTrimmedAvg(beta=config.trim_fraction),
    "krum": lambda config: Krum(num_malicious_nodes=config.malicious_clients),
    "multi-krum": lambda config: MultiKrum(
        num_malicious_nodes=config.malicious_clients,
        num_nodes_to_select=config.min_clients - config.malicious_clients - 2,
    ),
    "bulyan": lambda config: Bulyan(num_malicious_nodes=config.malicious_clients),
}


def combine(config: Config, contributions: Sequence[Contribution]) -> list[SlotDifferences]:
    """Groups of one entry from valid replies in slot order.

    Sites that share directions are aggregated direction by direction by ``config.aggregation``;
    sites with directions of their own keep their numbers, times their share of the examples.
    """
    if config.seed_schedule == "shared":
        return [SlotDifferences(SHARED_SLOT, aggregate(config, contributions).astype(np.float32))]
    total = sum(c.examples for c in contributions)
    return [
        SlotDifferences(
            c.slot, (c.differences.astype(np.float64) * (c.examples / total)).astype(np.float32)
        )
        for c in contributions
    ]


def aggregate(config: Config, contributions: Sequence[Contribution]) -> NDArray[np.float64]:
    """One vector (K*q,) from vectors (clients, K*q), weighted by examples where the rule weighs."""
    if config.aggregation == "mean":
        return mean(contributions)
    return by_flower(config, contributions)


def mean(contributions: Sequence[Contribution]) -> NDArray[np.float64]:
    """The mean (n,) of vectors (n,), weighted by examples: FedAvg's own bits.

    Without its messages, which would be a third of a round of many sites that measure little.
    """
    weight = sum(c.examples for c in contributions)
    first, *others = (
        c.differences.astype(np.float64) * (c.examples / weight) for c in contributions
    )
    for other in others:
        first += other
    return first


def by_flower(config: Config, contributions: Sequence[Contribution]) -> NDArray[np.float64]:
    """One vector (n,) from vectors (n,) by the Flower strategy that ``config`` names."""
    replies = [_reply(c) for c in contributions]
    gc.freeze()  # Flower collects garbage after each array; this heap would take 0.1 s each time
    try:
        rule = RULES[config.aggregation](config)
        arrays, _ = rule.aggregate_train(contributions[0].round, replies)
    finally:
        gc.unfreeze()
    if arrays is None:
        raise RuntimeError(f"{config.aggregation} gave nothing for {len(replies)} replies")
    return arrays["coefficients"].numpy()


def combine_dense(
    config: Config,
    contributions: Sequence[Contribution],
    vector_of: Callable[[Contribution], Tensor],
) -> Tensor:
    """One vector (size,) float32 from the sites' vectors, in slot order.

    A mean needs one of them at a time, in float64; rules that compare sites need all.
    """
    if config.aggregation != "mean":
        numbers = [replace(c, differences=vector_of(c).numpy()) for c in contributions]
        return torch.from_numpy(aggregate(config, numbers).astype(np.float32))
    total, weight = torch.zeros(0), sum(c.examples for c in contributions)
    for c in contributions:
        part = vector_of(c).double() * (c.examples / weight)
        total = part if not total.numel() else total.add_(part)
    return total.float()


class HeldArray(Array):
    """An array that strategies read as it is, without a serialised copy: half the time of a round.

    It never leaves this process.
    """

    def __init__(self, vector: NDArray[np.float64]) -> None:
        super().__init__(dtype=str(vector.dtype), shape=vector.shape, stype="held", data=b"")
        self._vector = vector

    def numpy(self) -> NDArray[np.float64]:
        """The vector itself."""
        return self._vector


def _reply(c: Contribution) -> Message:
    vector = ArrayRecord()
    vector["coefficients"] = HeldArray(c.differences.astype(np.float64))
    content = RecordDict({"arrays": vector, "metrics": MetricRecord({"num-examples": c.examples})})
    return Message(content=content, dst_node_id=1, message_type=MessageType.TRAIN)
