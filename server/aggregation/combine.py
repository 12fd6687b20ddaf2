"""Valid replies become one entry: numbers by their directions, gradients by their codec.

Sites that sent gradients and sites that only measured make two estimates of one gradient. They are
combined with weights that are inverse to their errors, as these show in the replies: a measured
estimate of q directions in d dimensions is off by some (d/q)·‖g‖², so that a plain average with it
would be worse than the backpropagated gradients alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from server.aggregation.rules import combine, combine_dense
from server.aggregation.variance_weights import ratio, tilted_weight
from server.ledger.records import Contribution
from shared.base.deterministic_sums import dot, norm
from shared.config.rules import needed_replies
from shared.config.schema import Config
from shared.estimation.guided import Estimate, directions_along
from shared.estimation.two_point import radius
from shared.modes.mode import cost, plan_of
from shared.optimizers.gradient import add_scaled_
from shared.protocol.entry import Entry, SlotDifferences
from shared.randomness.streams import SHARED_SLOT, direction_keys
from shared.replica.replica import Replica


@dataclass(frozen=True)
class PartialEstimate:
    """What one kind of sites says of the gradient."""

    slots: Sequence[SlotDifferences]
    error: float  # estimated squared distance from the gradient
    guide: float = 0.0  # along the guidance that every replica holds
    dense: Tensor | None = None  # (size,)

    def scaled(self, weight: float) -> list[SlotDifferences]:
        """The slots, times ``weight``."""
        factor = np.float32(weight)
        return [SlotDifferences(g.slot, g.differences * factor) for g in self.slots]


@dataclass(frozen=True)
class Combiner:
    """Makes the entries of one run; the replica, at the round before, is only read."""

    config: Config
    replica: Replica

    def entry(
        self, round_: int, rate: float, contributions: Sequence[Contribution]
    ) -> Entry | None:
        """The entry of a round from valid replies in slot order; None if they are too few to judge.

        Raises:
            WireError: what the sites' gradients add up to cannot be encoded.
        """
        senders = [c for c in contributions if c.gradient]
        others = [c for c in contributions if not c.gradient]
        needed = needed_replies(self.config)
        told = self._sent(senders) if len(senders) >= needed else None
        measured = self._measured(others) if len(others) >= needed else None
        if told is None or told.dense is None:
            if measured is None:
                return None
            return Entry(round_, rate, tuple(measured.slots), measured.guide)
        slots, dense = list(told.slots), told.dense
        if measured is not None:
            weight = ratio(measured.error, told.error)
            slots = merge_slots(told.scaled(weight), measured.scaled(1 - weight))
            dense = dense * weight
        payload = self.replica.codec.encode(dense)
        self.replica.codec.decode(payload)
        return Entry(round_, rate, tuple(slots), 1.0, payload)

    def gradient_norm(self, entry: Entry, contributions: Sequence[Contribution]) -> float:
        """The length of the gradient: of the sent one, or as the loss differences estimate it."""
        if entry.payload:
            return norm(self.replica.codec.decode(entry.payload))
        measured = np.concatenate([c.differences for c in contributions]).astype(np.float64)
        return float(np.sqrt(np.mean((measured / (2 * self.config.eps)) ** 2)))

    def forwards(self, round_: int, contributions: Sequence[Contribution]) -> int:
        """Forward passes of all sites, a backward counted as two."""
        return sum(
            cost(self.config, plan_of(self.config, round_, bool(c.gradient))) for c in contributions
        )

    def _measured(self, sites: Sequence[Contribution]) -> PartialEstimate:
        """Sites that sent loss differences alone."""
        c, guide = self.config, self.replica.guidance
        plan = plan_of(c, sites[0].round, can_backpropagate=False)
        if plan.along == "guidance" and guide is not None:
            return self._leaning(sites, guide)
        slopes = np.concatenate([s.differences for s in sites]).astype(np.float64) / (2 * c.eps)
        directions = c.queries * (1 if c.seed_schedule == "shared" else len(sites))
        spread = self.replica.model.layout.parameters / directions
        return PartialEstimate(combine(c, sites), spread * float(np.mean(slopes**2)))

    def _leaning(self, sites: Sequence[Contribution], guide: Tensor) -> PartialEstimate:
        """Sites that measured along the last guidance: one number for it beside the directions."""
        told = []
        for site in sites:
            estimate = self._estimate(site, guide)
            values = np.append(self._numbers(estimate), estimate.guide)
            told.append(replace(site, differences=values))
        slots = combine(self.config, told)
        along = sum(float(group.differences[-1]) for group in slots)
        return PartialEstimate(
            [SlotDifferences(g.slot, g.differences[:-1]) for g in slots], 0.0, along
        )

    def _sent(self, sites: Sequence[Contribution]) -> PartialEstimate:
        """Sites that sent gradients, and perhaps differences along directions tilted to these."""
        energies: list[float] = []
        told: list[Contribution] = []

        def vector_of(site: Contribution) -> Tensor:
            vector, numbers = self._blended(site)
            energies.append(dot(vector, vector))
            told.append(replace(site, differences=numbers))
            return vector

        dense = combine_dense(self.config, sites, vector_of)
        mean, count = dot(dense, dense), len(sites)
        error = max(sum(energies) / count - mean, 0.0) / (count - 1) if count > 1 else mean
        measured = any(len(t.differences) for t in told)
        return PartialEstimate(combine(self.config, told) if measured else [], error, dense=dense)

    def _blended(self, site: Contribution) -> tuple[Tensor, NDArray[np.float64]]:
        """A site's gradient, blended with what it measured along it: dense part and numbers."""
        gradient = self.replica.codec.decode(site.gradient)
        if not len(site.differences):
            return gradient, np.zeros(0)
        estimate = self._estimate(site, gradient)
        weight = tilted_weight(self.config, gradient, self._slopes(site))
        dense = estimate.on(gradient) * (1 - weight)
        add_scaled_(dense, gradient, weight)
        return dense, self._numbers(estimate) * (1 - weight)

    def _estimate(self, site: Contribution, guide: Tensor) -> Estimate:
        c, replica = self.config, self.replica
        slot = SHARED_SLOT if c.seed_schedule == "shared" else site.slot
        keys = direction_keys(c.seed, site.round, slot, 0, len(site.differences))
        lean = directions_along(c, replica.model, replica.directions, guide)
        found = lean.estimate(keys, self._slopes(site))
        return found if found.dense is None else replace(found, dense=found.dense.cpu())

    def _slopes(self, site: Contribution) -> NDArray[np.float64]:
        step = radius(self.config.eps, self.replica.model.layout)
        slopes: NDArray[np.float64] = site.differences.astype(np.float64) / (2 * step)
        return slopes

    def _numbers(self, estimate: Estimate) -> NDArray[np.float64]:
        """Coefficients of directions as the differences that an entry holds."""
        return estimate.keys * (2 * self.config.eps * self.config.queries)


def merge_slots(
    first: Sequence[SlotDifferences], second: Sequence[SlotDifferences]
) -> list[SlotDifferences]:
    """Groups of both, those of one slot added, in slot order."""
    found = {group.slot: group for group in first}
    for slot, added in ((group.slot, group.differences) for group in second):
        before = found[slot].differences if slot in found else np.zeros_like(added)
        found[slot] = SlotDifferences(slot, before + added)
    return [found[slot] for slot in sorted(found)]
