"""A run that diverges goes back to where it was well, and goes on at lower learning rates.

Judged from what the ledger holds alone, so that a run that was killed decides as if it were not.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median

import numpy as np

from server.ledger.lineage import lineage
from server.ledger.records import Metrics
from server.ledger.run_folder import Run
from server.ledger.snapshots import Snapshots
from server.rounds.round_log import RoundLog
from shared.base.errors import GapError, StalledError
from shared.modes.mode import measured_at
from shared.protocol.entry import Entry

LOG = logging.getLogger("dandelion")
WINDOW = 9  # rounds whose median is compared, so that a few bad batches are none's concern
HISTORY = 200  # rounds that the bound is taken from
LEAST = 3  # rounds before anything is judged
SPREADS = 4.0  # a rise within so many standard deviations of a round's loss is noise


@dataclass(frozen=True)
class Divergence:
    """What is wrong, and the newest round whose parameters were well."""

    reason: str
    well: int


@dataclass
class DivergenceGuard:
    """Watches the sites' losses between rounds.

    With staleness a rewind is followed by a pause, so that no round after the two is measured at
    parameters that were undone. Off where ``guard-rewinds`` is 0.
    """

    run: Run
    _losses: dict[int, float] = field(default_factory=dict)  # of each round, over its sites

    def rewind_if_diverged(self, notes: RoundLog) -> bool:
        """Commit a rewind, and be there, if the run has diverged; or the pause that is due.

        Raises:
            StalledError: it has, and ``guard-rewinds`` were of no avail.
        """
        config, ledger, rewinds = self.run.config, self.run.ledger, self.run.ledger.rewinds()
        last = ledger.last_round
        if rewinds and last < rewinds[-1].round + config.staleness:
            self._commit(Entry(last + 1, rewinds[-1].scale, (), back_to=last), notes)
            return True
        if (found := self.divergence()) is None:
            return False
        if len(rewinds) >= config.guard_rewinds:
            raise StalledError(
                f"round {last}: {found.reason}; the run went back {len(rewinds)} "
                f"times (guard-rewinds) and diverged again at {rewinds[-1].scale:.3g} × its "
                "learning rates; 'dandelion preflight' suggests eps and learning rate"
            )
        scale = (rewinds[-1].scale if rewinds else 1.0) * config.guard_rate_factor
        back_to = self._return_to(found.well)
        LOG.warning(
            "round %d: %s; back to round %d, learning rates × %.3g",
            *(last + 1, found.reason, back_to, scale),
        )
        self._commit(Entry(last + 1, scale, (), back_to=back_to), notes, found.reason)
        return True

    def _commit(self, entry: Entry, notes: RoundLog, reason: str = "") -> None:
        transfers, refusals = notes.until(entry.round)
        up, down = (notes.payload(way, entry.round, transfers) for way in ("up", "down"))
        metrics = self._metrics(entry, up, down)
        committed = self.run.ledger.commit(entry, [], transfers, metrics, refusals, reason)
        self.run.oracle.replica.apply([committed])

    def warn(self) -> None:
        """Say so where the run ends in divergence: no round is left to go back in."""
        if (found := self.divergence()) is not None:
            LOG.warning("the run ends where it diverged: %s", found.reason)

    def divergence(self) -> Divergence | None:
        """Whether most sites' numbers are none, or the newest losses are above the bound."""
        last = self.run.ledger.last_round
        if not (config := self.run.config).guard_rewinds:
            return None
        rounds, losses = self._recent(last)
        reason = judge_losses(losses, config.guard_tolerance)
        reason = reason or self._not_finite(last) or self._not_finite(last + 1)
        if not reason:
            return None
        newest = newest_sound(losses, config.guard_tolerance) or 0
        return Divergence(reason, measured_at(config, rounds[newest]) if rounds else 0)

    def _not_finite(self, round_: int) -> str:
        """What is wrong where most sites' numbers of a round are none, after a step; else empty.

        Where they were none before the first step as well, going back would mend nothing.
        """
        config, ledger = self.run.config, self.run.ledger
        at, rewinds = measured_at(config, round_), ledger.rewinds()
        if not (bad := self._bad(round_)) or not at:
            return ""
        if ledger.is_rewind(at) or ledger.is_rewind(round_):
            return ""
        first = rewinds[-1].round + 1 + config.staleness if rewinds else 1
        return "" if self._bad(first) else bad

    def _bad(self, round_: int) -> str:
        bad, size = self.run.ledger.count_not_finite(round_), self.run.ledger.count_cohort(round_)
        return f"{bad} of {size} sites measured no finite losses" if 2 * bad > size else ""

    def _recent(self, last: int) -> tuple[list[int], list[float]]:
        """The newest rounds on the way to ``last``, and the median of the sites' losses in each."""
        line, first = lineage(self.run.ledger, last), max(1, last - HISTORY + 1)
        for round_ in range(first, last + 1):
            if round_ not in self._losses:
                losses = self.run.ledger.site_losses(round_)
                self._losses[round_] = median(losses) if losses else math.nan
        self._losses = {k: loss for k, loss in self._losses.items() if k >= first}
        rounds = [
            k for k, loss in sorted(self._losses.items()) if k in line and not math.isnan(loss)
        ]
        return rounds, [self._losses[k] for k in rounds]

    def _return_to(self, well: int) -> int:
        """Bring the replica to the newest snapshot up to ``well``, or to the base model."""
        run, snapshots = self.run, Snapshots(self.run.ledger)
        line = lineage(run.ledger, run.ledger.last_round)
        at = next(k for k in range(well, -1, -1) if k in line)
        while True:
            found = snapshots.latest(at)
            to = found.round if found else 0
            try:
                run.return_to(to)
            except GapError as error:  # a snapshot was lost, and gradients before it were dropped
                LOG.warning("not used: %s", error)
                at = to - 1
                continue
            if (digest := run.ledger.digest(to)) is not None:
                run.oracle.replica.check(digest)
            return to

    def _metrics(self, entry: Entry, up: int, down: int) -> Metrics:
        """What the log says of a rewind: the loss where it went back to, and the new rate."""
        measured = entry.follows + self.run.config.staleness if entry.undoes else entry.follows - 1
        return Metrics(
            round=entry.round,
            timestamp=datetime.now(UTC).isoformat(timespec="milliseconds"),
            loss=self.run.ledger.loss_after(measured) or 0.0,
            gradient_norm=0.0,
            learning_rate=self.run.config.learning_rate * entry.learning_rate,
            clients=0,
            forwards=0,
            bytes_up=up,
            bytes_down=down,
            seconds=0.0,
        )


def judge_losses(losses: Sequence[float], tolerance: float) -> str:
    """What is wrong with the newest of some rounds' losses (n,), oldest first; empty: nothing."""
    if len(losses) < LEAST:
        return ""
    medians = running_medians(losses)
    limit = bound(losses, medians[:-1], tolerance)
    if medians[-1] <= limit:
        return ""
    return f"the sites' loss is {medians[-1]:.4g}, above its bound of {limit:.4g}"


def newest_sound(losses: Sequence[float], tolerance: float) -> int | None:
    """Place of the newest loss that took no more than half of the rise that is allowed."""
    medians = running_medians(losses)
    if not medians:
        return None
    before = medians[:-1] or medians
    half = lowest(before) + rise(losses, before, tolerance) / 2
    fine = [k for k, m in enumerate(medians) if m <= half and losses[k] <= half]
    return fine[-1] if fine else None


def running_medians(losses: Sequence[float]) -> list[float]:
    """The median of each loss and the up to WINDOW - 1 before it."""
    return [median(losses[max(0, k - WINDOW + 1) : k + 1]) for k in range(len(losses))]


def lowest(medians: Sequence[float]) -> float:
    """The lowest median over a whole window; in the first rounds over as many as there are."""
    return min(medians[WINDOW - 1 :] if len(medians) > 2 * WINDOW else medians)


def bound(losses: Sequence[float], medians: Sequence[float], tolerance: float) -> float:
    """What a median of losses may be; more in the first rounds, before their spread is known."""
    early = 1.0 if len(losses) < WINDOW else 0.75 if len(losses) <= 2 * WINDOW else 0.0
    return lowest(medians) + max(rise(losses, medians, tolerance), early * scale(medians))


def rise(losses: Sequence[float], medians: Sequence[float], tolerance: float) -> float:
    """How far a median may be above the lowest: a share of the scale, or what is noise.

    Noise is SPREADS standard deviations of a single loss, which steps from one to the next tell,
    whatever the trend.
    """
    settled = np.asarray(losses[:-WINDOW], float)
    spread = float(np.std(np.diff(settled))) / 2**0.5 if len(settled) > WINDOW else 0.0
    return max(tolerance * scale(medians), SPREADS * spread)


def scale(medians: Sequence[float]) -> float:
    """The larger of the first loss and the lowest."""
    return max(abs(lowest(medians)), abs(medians[0]))
