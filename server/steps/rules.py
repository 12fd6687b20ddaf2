"""Rules that make a round's rate of slopes, and of how far losses fell: pure functions of numbers.

*Normalised.* The mean squared slope u is averaged over the lineage, v ← β·v + (1 − β)·u, corrected
for its start at zero. The rate w·√q / √v moves a parameter w in a round (root mean square), since
an estimate of q slopes moves it √(u / q) at rate 1. FZOO (https://arxiv.org/abs/2506.09034) has
β = 0, MEAZO (https://arxiv.org/abs/2605.03869) a mean over time.

*Auto.* To first order a step lowers the loss of its own batch by rate·u. If it has lowered it by
r times that, then 1 − r = rate·T / 2q is what curvature T took back. The fall of the loss of *all*
examples is largest where that is half of the signal's share ρ of u; the rest of u is noise of the
batches, whose falls do not count. So the rate rises while the excess (1 − r) / ρ is below RAISE and
falls above LOWER. Above 1 the step has not lowered the loss of all examples: then the rate falls at
once, by what the excess says. The share follows from how well sites agree, as a mean over rounds
that does not depend on the size of their slopes, since the first slopes are the largest and the
cleanest. No step is LONGEST times as long as is usual: a rate that is too large shows first in
slopes that rise.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, sqrt
from statistics import median

from shared.optimizers.adam import power

RECENT = 9  # rounds whose median says what is usual
FLOOR = 1e-3  # of that median: v is not taken to be less, nor a share of the signal below LEAST
MOST_RISE = 3.0  # of a normalised rate from one round to the next
WILD = 10.0  # times the usual: a larger u is remembered as this
RAISE, LOWER = 0.5, 0.7  # of (1 − r) / ρ: best is 0.5
FACTOR, CLIMB = 1.2, 2.0  # of one round; until a rate was too large for the first time
EASY = 0.2  # of (1 − r) / ρ, below which a rate may climb
SMOOTHING = 0.7  # share of the past in it
LEAST_CUT, MOST_CUT = 1 / 2, 1 / 16  # of the rate, if the loss of all examples has not fallen
LEAST = 0.1  # share of the signal that is believed
RANGE = 1 / 1024, 64.0  # of the normalised rate
STEPS = 3  # the last ones, whose median way is usual: of steps that double it is half the last
LONGEST = 4.0  # times the usual way that one round may move a parameter


@dataclass(frozen=True)
class StepSettings:
    """What the rules know of a run."""

    movement: float  # w
    memory: float  # β
    queries: int  # q
    momentum: float = 0.0


@dataclass(frozen=True)
class Agreement:
    """How alike the slopes of sites are along shared directions."""

    sites: int
    value: float  # mean product of two sites' / mean square of a site's, at most 1


@dataclass(frozen=True)
class Evidence:
    """What a round says of steps."""

    energy: float  # u: Σ slopes² / q over the numbers of its entry
    agreement: Agreement | None = None  # of the sites' slopes; None: it cannot be told
    ratio: float | None = None  # r: fall of the last step's batch / fall that its slopes predicted


@dataclass(frozen=True)
class StepState:
    """What is remembered of the rounds of a lineage."""

    steps: int = 0
    mean: float = 0.0  # of u, not corrected for its start at zero
    agreement: float = 0.0  # the same of the sites' agreement
    weight: float = 0.0  # what the corrections divide that by; 0: it was never told
    sites: int = 1  # of the last round that told it
    recent: tuple[float, ...] = ()  # u of the last rounds that took a step
    ways: tuple[float, ...] = ()  # rate²·u of the last of them
    rate: float = 0.0  # before schedule and rewinds; 0: none yet
    taken: float = 0.0  # the same, as the round of this state took it
    excess: float = RAISE  # smoothed (1 − r) / ρ
    climbs: bool = True

    def usual(self, memory: float) -> float:
        """Mean of u over the rounds so far, corrected; 0 if there are none."""
        return self.mean / (1 - power(memory, self.steps)) if self.steps else 0.0


Rule = Callable[[StepState, Evidence, StepSettings], StepState]


def normalise(state: StepState, evidence: Evidence, settings: StepSettings) -> StepState:
    """The state after a round whose rate is w·√q / √v; its own slopes are in v."""
    if not evidence.energy:
        return replace(state, taken=state.rate)
    rate = rate_of(state, plausible(state, evidence.energy), settings)
    if state.rate:
        rate = min(rate, MOST_RISE * state.rate)
    taken = min(rate, rate_of(state, evidence.energy, settings))
    return replace(_remember(state, evidence, settings.memory), rate=rate, taken=taken)


def auto(state: StepState, evidence: Evidence, settings: StepSettings) -> StepState:
    """The state after a round whose rate follows the falls; the first one is normalised."""
    if not evidence.energy:
        return replace(state, taken=state.rate)
    after = _remember(state, evidence, settings.memory)
    if not state.rate:
        return _take(after, rate_of(state, evidence.energy, settings), evidence.energy)
    if evidence.ratio is not None:
        after = _adapt(after, evidence.ratio, share_of(after))
    middle = rate_of(state, plausible(state, evidence.energy), settings)
    low, high = (middle * factor for factor in RANGE)
    return _take(after, min(max(after.rate, low), high), evidence.energy)


RULES: dict[str, Rule] = {"normalised": normalise, "auto": auto}


def rate_of(state: StepState, energy: float, settings: StepSettings) -> float:
    """The rate w·√q / √v of a round with mean squared slope ``energy`` above 0.

    With momentum μ a step is repeated, and moves a parameter 1 / √(1 − μ²) times as far.
    """
    beta = settings.memory
    mean = (beta * state.mean + (1 - beta) * energy) / (1 - power(beta, state.steps + 1))
    mean = max(mean, FLOOR * median([*state.recent, energy][-RECENT:]))
    return settings.movement * sqrt(settings.queries * (1 - settings.momentum**2) / mean)


def plausible(state: StepState, energy: float) -> float:
    """A round's u as it is remembered: a wild one counts as WILD usual ones."""
    return min(energy, WILD * median(state.recent)) if state.recent else energy


def share_of(state: StepState) -> float:
    """The signal's share ρ of u, as far as it is believed; 1 if it cannot be told.

    Of n sites' slopes with agreement c the mean square is E, and that of their mean
    u = E·(1 + (n − 1)·c) / n, of which c·E is what all have in common.
    """
    if not state.weight:
        return 1.0
    agreement = max(state.agreement / state.weight, 0.0)
    share = state.sites * agreement / (1 + (state.sites - 1) * agreement)
    return min(max(share, LEAST), 1.0)


def _remember(state: StepState, evidence: Evidence, beta: float) -> StepState:
    """Take a round's numbers in; a round of zeros says nothing, and does not come here."""
    energy, agreement = plausible(state, evidence.energy), evidence.agreement
    if agreement is not None:
        state = replace(
            state,
            agreement=beta * state.agreement + (1 - beta) * agreement.value,
            weight=beta * state.weight + (1 - beta),
            sites=agreement.sites,
        )
    return replace(
        state,
        steps=state.steps + 1,
        mean=beta * state.mean + (1 - beta) * energy,
        recent=(*state.recent, energy)[-RECENT:],
    )


def _take(state: StepState, rate: float, energy: float) -> StepState:
    """A step at a rate, shorter if it would be LONGEST times as long as is usual."""
    way, most = rate**2 * energy, LONGEST**2 * median(state.ways or (inf,))
    taken = rate * sqrt(most / way) if way > most else rate
    return replace(state, rate=rate, taken=taken, ways=(*state.ways, taken**2 * energy)[-STEPS:])


def _adapt(state: StepState, ratio: float, share: float) -> StepState:
    """Change the rate by what the last step's batch says."""
    excess = (1 - ratio) / share
    if excess > 1:
        cut = min(max(RAISE / excess, MOST_CUT), LEAST_CUT)
        return replace(state, rate=state.rate * cut, excess=RAISE, climbs=False)
    if not state.climbs:
        excess = SMOOTHING * state.excess + (1 - SMOOTHING) * excess
    if excess < RAISE:
        factor = CLIMB if state.climbs and excess < EASY else FACTOR
        rate = max(state.rate, factor * state.taken)  # which was less, if the step was shortened
        return replace(state, rate=rate, excess=excess)
    if excess > LOWER:
        return replace(state, rate=state.rate / FACTOR, excess=excess, climbs=False)
    return replace(state, excess=excess)
