"""A run that diverges goes back to an earlier round and continues at lower learning rates.

The decision depends on the ledger alone, so a run that was killed and resumed decides the same.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median

import numpy as np

from server.aggregation.culprits import Culprits, find_culprits
from server.ledger.lineage import lineage
from server.ledger.records import LEFT_OUT, Metrics
from server.ledger.run_folder import OpenRun
from server.ledger.snapshots import Snapshots
from server.rounds.round_log import RoundLog
from server.steps.learning_rates import is_by_rule
from shared.base.errors import GapError, StalledError
from shared.base.text import escape_text
from shared.modes.mode import parameters_round
from shared.protocol.entry import Entry

LOG = logging.getLogger("dandelion")
WINDOW = 9  # rounds whose median is compared, so that a few bad batches do not count
HISTORY = 200  # rounds that the bound is taken from
FEWEST_ROUNDS = 3  # before anything is judged
SPREADS = 4.0  # a rise within so many standard deviations of a round's loss is noise


@dataclass(frozen=True)
class Divergence:
    """What is wrong, and the newest round whose parameters were sound."""

    reason: str
    sound_round: int


@dataclass
class DivergenceGuard:
    """Watches the sites' losses between rounds; off if ``guard-rewinds`` is 0.

    With staleness a pause follows each rewind, so that no later round is measured at parameters
    that were undone.
    """

    run: OpenRun
    _losses: dict[int, "RoundLoss"] = field(default_factory=dict)

    def rewind_if_diverged(self, log: RoundLog) -> bool:
        """Commit a rewind and bring the replica there if the run has diverged; or a due pause.

        Returns whether it committed a round.

        Raises:
            StalledError: the run diverged again after ``guard-rewinds`` rewinds.
        """
        config, ledger, rewinds = self.run.config, self.run.ledger, self.run.ledger.rewinds()
        last = ledger.last_round
        if rewinds and last < rewinds[-1].round + config.federation.staleness:
            self._commit(Entry(last + 1, rewinds[-1].scale, (), back_to=last), log)
            return True
        if (divergence := self.find_divergence()) is None:
            return False
        if len(rewinds) >= config.guard.rewinds:
            raise StalledError(
                f"round {last}: {divergence.reason}; the run went back {len(rewinds)} "
                f"times (guard-rewinds) and diverged again at {rewinds[-1].scale:.3g} × its "
                "learning rates; 'dandelion preflight' suggests eps and learning rate"
            )
        scale = (rewinds[-1].scale if rewinds else 1.0) * config.guard.rate_factor
        reason = divergence.reason + self._blame(divergence.sound_round, log)
        back_to = self._return_to(divergence.sound_round)
        LOG.warning(
            "round %d: %s; back to round %d, learning rates × %.3g",
            *(last + 1, reason, back_to, scale),
        )
        self._commit(Entry(last + 1, scale, (), back_to=back_to), log, reason)
        return True

    def _blame(self, sound: int, log: RoundLog) -> str:
        """Name the sites that caused the divergence, if any did, and have them left out.

        They stay if too few others would be left. The refusals are written with the rewind.
        """
        ledger, federation = self.run.ledger, self.run.config.federation
        line = lineage(ledger, ledger.last_round)
        undone = [k for k in range(sound + 1, ledger.last_round + 1) if k in line]
        culprits = find_culprits(self.run.config, (ledger.contributions(k) for k in undone))
        if culprits is None:
            return ""
        needed = max(federation.min_sites, federation.min_replies)
        stays = culprits.left < needed
        end = f"but needed for {needed} sites" if stays else LEFT_OUT
        for site in culprits.sites:
            reason = "caused a rewind" if stays else LEFT_OUT
            log.refuse(ledger.last_round + 1, site, reason, _account(culprits, undone))
        return f"; caused by {', '.join(map(escape_text, culprits.sites))}, {end}"

    def _commit(self, entry: Entry, log: RoundLog, reason: str = "") -> None:
        transfers, refusals = log.until(entry.round)
        up, down = (log.payload(way, entry.round, transfers) for way in ("up", "down"))
        metrics = self._metrics(entry, up, down)
        committed = self.run.ledger.commit(entry, [], transfers, metrics, refusals, reason)
        self.run.oracle.replica.apply([committed])

    def warn(self) -> None:
        """Warn if the run ends in divergence: no round is left for a rewind."""
        if (divergence := self.find_divergence()) is not None:
            LOG.warning("the run ends where it diverged: %s", divergence.reason)

    def find_divergence(self) -> Divergence | None:
        """Say if most sites' losses are not finite, or the newest are above the bound."""
        last = self.run.ledger.last_round
        if not (config := self.run.config).guard.rewinds:
            return None
        rounds, losses = self._recent_losses(last)
        noise = median([self._losses[k].error for k in rounds[:-1]] or [0.0])
        reason = judge_losses(losses, config.guard.tolerance, noise)
        reason = reason or self._not_finite(last) or self._not_finite(last + 1)
        if not reason:
            return None
        newest = newest_sound(losses, config.guard.tolerance, noise) or 0
        return Divergence(reason, parameters_round(config, rounds[newest]) if rounds else 0)

    def _not_finite(self, round_: int) -> str:
        """Say how many sites' numbers of a round are not finite, if they are most; else empty.

        If they were not finite before the first step either, a rewind would not help.
        """
        config, ledger = self.run.config, self.run.ledger
        at, rewinds = parameters_round(config, round_), ledger.rewinds()
        if not (bad := self._bad(round_)) or not at:
            return ""
        if ledger.is_rewind(at) or ledger.is_rewind(round_):
            return ""
        first = rewinds[-1].round + 1 + config.federation.staleness if rewinds else 1
        return "" if self._bad(first) else bad

    def _bad(self, round_: int) -> str:
        bad, size = self.run.ledger.count_not_finite(round_), self.run.ledger.count_cohort(round_)
        return f"{bad} of {size} sites measured no finite losses" if 2 * bad > size else ""

    def _recent_losses(self, last: int) -> tuple[list[int], list[float]]:
        """The newest rounds on the way to ``last``, and the median of the sites' losses in each."""
        line, first = lineage(self.run.ledger, last), max(1, last - HISTORY + 1)
        for round_ in range(first, last + 1):
            if round_ not in self._losses:
                self._losses[round_] = RoundLoss.of(self.run.ledger.site_losses(round_))
        self._losses = {k: loss for k, loss in self._losses.items() if k >= first}
        rounds = [
            k
            for k, loss in sorted(self._losses.items())
            if k in line and not math.isnan(loss.middle)
        ]
        return rounds, [self._losses[k].middle for k in rounds]

    def _return_to(self, sound: int) -> int:
        """Bring the replica to the newest snapshot up to ``sound``, or to the base model."""
        run, snapshots = self.run, Snapshots(self.run.ledger)
        line = lineage(run.ledger, run.ledger.last_round)
        at = next(k for k in range(sound, -1, -1) if k in line)
        while True:
            newest = snapshots.latest(at)
            to = newest.round if newest else 0
            try:
                run.return_to(to)
            except GapError as error:  # a snapshot was lost, and gradients before it were dropped
                LOG.warning("not used: %s", error)
                at = to - 1
                continue
            if (digest := run.ledger.digest(to)) is not None:
                run.oracle.replica.check(digest)
            return to

    def _rate_shown(self, entry: Entry) -> float:
        """The setting times the rewind's scale; by a step rule, the last step's rate likewise."""
        config, ledger = self.run.config, self.run.ledger
        if not is_by_rule(config):
            return config.optimizer.rate * entry.learning_rate
        rewinds = [r.scale for r in ledger.rewinds() if r.round <= entry.follows]
        before = ledger.metrics_of(entry.follows)
        scale = rewinds[-1] if rewinds else 1.0
        return before.learning_rate * entry.learning_rate / scale if before else 0.0

    def _metrics(self, entry: Entry, up: int, down: int) -> Metrics:
        """The metrics of a rewind: the loss at the round that it goes back to, and the new rate."""
        measured = (
            entry.follows + self.run.config.federation.staleness
            if entry.undoes
            else entry.follows - 1
        )
        return Metrics(
            round=entry.round,
            timestamp=datetime.now(UTC).isoformat(timespec="milliseconds"),
            loss=self.run.ledger.loss_after(measured),
            gradient_norm=0.0,
            learning_rate=self._rate_shown(entry),
            clients=0,
            forwards=0,
            bytes_up=up,
            bytes_down=down,
            seconds=0.0,
        )


def _account(culprits: Culprits, undone: Sequence[int]) -> str:
    return (
        f"{culprits.share:.0%} of the steps of rounds {undone[0]} to {undone[-1]}, "
        "which the rewind undid, came from its numbers"
    )


@dataclass(frozen=True)
class RoundLoss:
    """What the sites' losses of a round say: their median, and its standard error."""

    middle: float  # NaN if there are none
    error: float  # by absolute deviations from it, so that one site cannot make it large

    @classmethod
    def of(cls, losses: Sequence[float]) -> "RoundLoss":
        """Of the losses (n,) of a round's sites; of normal ones the error is 1.25 · σ / √n."""
        if not losses:
            return cls(math.nan, 0.0)
        middle = median(losses)
        deviation = 1.4826 * median(abs(loss - middle) for loss in losses)
        return cls(middle, 1.2533 * deviation / len(losses) ** 0.5)


def judge_losses(losses: Sequence[float], tolerance: float, noise: float = 0.0) -> str:
    """Say what is wrong with the newest of some rounds' losses (n,), oldest first; or nothing.

    ``noise`` is the usual error of one of them, until differences between rounds tell it.
    """
    if len(losses) < FEWEST_ROUNDS:
        return ""
    medians = running_medians(losses)
    limit = bound(losses, medians[:-1], tolerance, noise)
    if medians[-1] <= limit:
        return ""
    return f"the sites' loss is {medians[-1]:.4g}, above its bound of {limit:.4g}"


def newest_sound(losses: Sequence[float], tolerance: float, noise: float = 0.0) -> int | None:
    """Index of the newest loss within half of the rise that is allowed; None if there is none."""
    medians = running_medians(losses)
    if not medians:
        return None
    before = medians[:-1] or medians
    half = lowest(before) + rise(losses, before, tolerance, noise) / 2
    fine = [k for k, m in enumerate(medians) if m <= half and losses[k] <= half]
    return fine[-1] if fine else None


def running_medians(losses: Sequence[float]) -> list[float]:
    """The median of each loss (n,) and of up to WINDOW - 1 losses before it."""
    return [median(losses[max(0, k - WINDOW + 1) : k + 1]) for k in range(len(losses))]


def lowest(medians: Sequence[float]) -> float:
    """The lowest median of whole windows; of any in the first rounds."""
    return min(medians[WINDOW - 1 :] if len(medians) > 2 * WINDOW else medians)


def bound(
    losses: Sequence[float], medians: Sequence[float], tolerance: float, noise: float
) -> float:
    """The bound on a median of losses; higher in the first rounds, as their spread is unknown."""
    early = 1.0 if len(losses) < WINDOW else 0.75 if len(losses) <= 2 * WINDOW else 0.0
    return lowest(medians) + max(rise(losses, medians, tolerance, noise), early * scale(medians))


def rise(
    losses: Sequence[float], medians: Sequence[float], tolerance: float, noise: float
) -> float:
    """How far a median may be above the lowest: a share of the scale, or the noise if larger.

    The noise is SPREADS standard deviations of a single loss, estimated from the differences of
    successive losses, so that a trend does not count; in the first rounds from how sites differ.
    """
    settled = np.asarray(losses[:-WINDOW], float)
    spread = float(np.std(np.diff(settled))) / 2**0.5 if len(settled) > WINDOW else noise
    return max(tolerance * scale(medians), SPREADS * spread)


def scale(medians: Sequence[float]) -> float:
    """The larger of the first loss and the lowest."""
    return max(abs(lowest(medians)), abs(medians[0]))
