"""Valid replies become one entry: differences by their directions, gradients by their codec.

Sites that sent gradients and sites that only measured make two estimates of one gradient. An
estimate from q directions in d dimensions has a squared error of some (d/q)·‖g‖². A plain average
with it would be worse than the backpropagated gradients alone, so ``variance_weights`` weighs them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.aggregation.variance_weights import (
    differences_error,
    gradient_weight,
    gradients_error,
    inverse_variance_weight,
)
from server.aggregation.weights import weights_of
from server.ledger.records import Contribution
from shared.aggregation import fewest_replies, rule_of
from shared.aggregation.flower import average, mean
from shared.base.deterministic_sums import dot, norm
from shared.base.errors import WireError
from shared.config.schema import Config
from shared.estimation.forward_differences import without_bend
from shared.estimation.guided import Estimate, directions_along
from shared.estimation.two_point import radius
from shared.modes.estimators import cost
from shared.modes.mode import plan_of
from shared.modes.step_rule import comparisons_of
from shared.optimizers.gradient import add_scaled_, coefficients_of, differences_of
from shared.protocol.entry import Entry, SlotDifferences
from shared.randomness.streams import SHARED_SLOT, direction_keys
from shared.replica.replica import Replica


class GradientError(WireError):
    """The gradient of ``site`` cannot be decoded; those of the others are not concerned."""

    def __init__(self, site: str, detail: str) -> None:
        super().__init__(detail)
        self.site = site


@dataclass(frozen=True)
class PartialEstimate:
    """The estimate of the gradient by one kind of sites."""

    slots: Sequence[SlotDifferences]
    error: float  # estimated squared distance from the gradient
    guide: float = 0.0  # coefficient of the guidance, which every replica has
    dense: Tensor | None = None  # (size,)

    def scale_slots(self, weight: float) -> list[SlotDifferences]:
        """The slots, times ``weight``."""
        factor = np.float32(weight)
        return [SlotDifferences(each.slot, each.differences * factor) for each in self.slots]


@dataclass(frozen=True)
class Combiner:
    """Makes the entries of one run; the replica, at the round before, is only read."""

    config: Config
    replica: Replica

    def entry(
        self, round_: int, rate: float, contributions: Sequence[Contribution]
    ) -> Entry | None:
        """Make a round's entry of valid replies in slot order; None if they are too few.

        Raises:
            GradientError: a site's gradient cannot be decoded.
            WireError: the combined gradient cannot be encoded.
        """
        senders = [c for c in contributions if c.gradient]
        others = [c for c in contributions if not c.gradient]
        needed = fewest_replies(self.config)
        sent = self._combine_sent(senders) if len(senders) >= needed else None
        measured = self._combine_measured(others) if len(others) >= needed else None
        if sent is None or sent.dense is None:
            if measured is None:
                return None
            return Entry(round_, rate, tuple(measured.slots), measured.guide)
        slots, dense = list(sent.slots), sent.dense
        if measured is not None:
            weight = inverse_variance_weight(measured.error, sent.error)
            slots = merge_slots(sent.scale_slots(weight), measured.scale_slots(1 - weight))
            dense = dense * weight
        payload = self.replica.codec.encode(dense)
        self.replica.codec.decode(payload)
        return Entry(round_, rate, tuple(slots), 1.0, payload)

    def decode(self, site: Contribution) -> Tensor:
        """The gradient (size,) that a site sent.

        Raises:
            GradientError: it cannot be decoded.
        """
        try:
            return self.replica.codec.decode(site.gradient)
        except WireError as error:
            raise GradientError(site.site, str(error)) from error

    def gradient_norm(self, entry: Entry, contributions: Sequence[Contribution]) -> float:
        """The length of the gradient: of the sent one, or as the loss differences estimate it."""
        if entry.payload:
            return norm(self.replica.codec.decode(entry.payload))
        differences = np.concatenate([site_differences(self.config, c) for c in contributions])
        return float(np.sqrt(np.mean(coefficients_of(differences, self.config.zo.eps, 1) ** 2)))

    def forwards(self, round_: int, contributions: Sequence[Contribution]) -> int:
        """Forward passes of all sites, a backward pass counted as two."""
        return sum(self._forwards(round_, each) for each in contributions)

    def _forwards(self, round_: int, site: Contribution) -> int:
        c, can = self.config, site.can_backpropagate
        sent = site.before is not None, site.after is not None
        plan, more = plan_of(c, round_, bool(site.gradient)), comparisons_of(c, round_, *sent, can)
        return cost(c, plan, site.examples, more, can)

    def _combine_measured(self, sites: Sequence[Contribution]) -> PartialEstimate:
        """Combine sites that sent loss differences alone."""
        c, guide = self.config, self.replica.guidance
        plan = plan_of(c, sites[0].round, can_backpropagate=False)
        if plan.along == "guidance" and guide is not None:
            return self._combine_guided(sites, guide)
        differences = np.concatenate([site_differences(c, site) for site in sites])
        directions = c.zo.queries * (1 if c.zo.seed_schedule == "shared" else len(sites))
        slopes, parameters = coefficients_of(differences, c.zo.eps, 1), self._parameters
        return PartialEstimate(
            combine_differences(c, sites), differences_error(slopes, parameters, directions)
        )

    def _combine_guided(self, sites: Sequence[Contribution], guide: Tensor) -> PartialEstimate:
        """Combine sites that measured along the last guidance, which gets a coefficient too."""
        with_guide = []
        for site in sites:
            estimate = self._estimate(site, guide)
            numbers = np.append(self._plain_differences(estimate), estimate.guide)
            with_guide.append(replace(site, differences=numbers))
        slots = combine_differences(self.config, with_guide)
        along = sum(float(each.differences[-1]) for each in slots)
        return PartialEstimate(
            [SlotDifferences(each.slot, each.differences[:-1]) for each in slots], 0.0, along
        )

    def _combine_sent(self, sites: Sequence[Contribution]) -> PartialEstimate:
        """Combine sites that sent gradients, perhaps with differences along tilted directions."""
        energies: list[float] = []
        plain: list[Contribution] = []

        def vector_of(site: Contribution) -> Tensor:
            vector, differences = self._blend(site)
            energies.append(dot(vector, vector))
            plain.append(replace(site, differences=differences))
            return vector

        dense = combine_gradients(self.config, sites, vector_of)
        error = gradients_error(energies, dot(dense, dense))
        measured = any(len(each.differences) for each in plain)
        slots = combine_differences(self.config, plain) if measured else []
        return PartialEstimate(slots, error, dense=dense)

    def _blend(self, site: Contribution) -> tuple[Tensor, NDArray[np.float64]]:
        """Blend a site's gradient with its measurement: dense part (size,), differences (q,)."""
        gradient = self.decode(site)
        if not len(site.differences):
            return gradient, np.zeros(0)
        estimate = self._estimate(site, gradient)
        weight = gradient_weight(self.config.bp, gradient, self._slopes(site))
        dense = estimate.on(gradient) * (1 - weight)
        add_scaled_(dense, gradient, weight)
        return dense, self._plain_differences(estimate) * (1 - weight)

    def _estimate(self, site: Contribution, guide: Tensor) -> Estimate:
        """The gradient as a site's slopes along directions by ``guide`` (size,) estimate it."""
        c, replica = self.config, self.replica
        slot = SHARED_SLOT if c.zo.seed_schedule == "shared" else site.slot
        keys = direction_keys(c.training.seed, site.round, slot, 0, len(site.differences))
        guided = directions_along(c.bp, replica.model, replica.directions, guide)
        estimate = guided.estimate(keys, self._slopes(site))
        return estimate if estimate.dense is None else replace(estimate, dense=estimate.dense.cpu())

    def _slopes(self, site: Contribution) -> NDArray[np.float64]:
        """Slopes (q,) along unit vectors, from a site's differences."""
        step = radius(self.config.zo.eps, self.replica.model.layout)
        return coefficients_of(site.differences.astype(np.float64), step, 1)

    def _plain_differences(self, estimate: Estimate) -> NDArray[np.float64]:
        """The coefficients of directions as the differences (q,) that an entry has."""
        return differences_of(estimate.keys, self.config.zo.eps, self.config.zo.queries)

    @property
    def _parameters(self) -> int:
        return self.replica.model.layout.parameters


def combine_differences(
    config: Config, contributions: Sequence[Contribution]
) -> list[SlotDifferences]:
    """Make the slots of one entry of valid replies in slot order.

    Sites that share directions are aggregated direction by direction by the rule ``aggregation``;
    sites with directions of their own keep their differences, times their share of the examples.
    """
    if config.zo.seed_schedule == "shared":
        vectors = np.array([c.differences for c in contributions], np.float64)
        vector = without_bend(config, rule_of(config)(vectors, weights_of(config, contributions)))
        return [SlotDifferences(SHARED_SLOT, vector.astype(np.float32))]
    weights = weights_of(config, contributions)
    return [
        SlotDifferences(c.slot, (site_differences(config, c) * share).astype(np.float32))
        for c, share in zip(contributions, weights / weights.sum(), strict=True)
    ]


def site_differences(config: Config, site: Contribution) -> NDArray[np.float64]:
    """A site's differences (K*q,) as far as slopes make them: without what curvature adds."""
    return without_bend(config, site.differences.astype(np.float64))


def combine_gradients(
    config: Config,
    contributions: Sequence[Contribution],
    vector_of: Callable[[Contribution], Tensor],
) -> Tensor:
    """Aggregate the sites' vectors (size,), in slot order, to one (size,) float32.

    The mean has one of them in memory at a time; rules that compare sites need all of them.
    """
    rule, weights = rule_of(config), weights_of(config, contributions)
    arrays = (vector_of(c).numpy() for c in contributions)
    if rule is mean:
        return torch.from_numpy(average(arrays, weights).astype(np.float32))
    first = next(arrays)
    vectors = np.empty((len(contributions), len(first)))
    for row, array in enumerate(chain([first], arrays)):
        vectors[row] = array
    return torch.from_numpy(rule(vectors, weights).astype(np.float32))


def merge_slots(
    first: Sequence[SlotDifferences], second: Sequence[SlotDifferences]
) -> list[SlotDifferences]:
    """Slots of both, those of one number added, in slot order."""
    merged = {each.slot: each for each in first}
    for slot, added in ((each.slot, each.differences) for each in second):
        before = merged[slot].differences if slot in merged else np.zeros_like(added)
        merged[slot] = SlotDifferences(slot, before + added)
    return [merged[slot] for slot in sorted(merged)]
