"""Rules that make a round's rate of slopes, and of how far losses fell: pure functions of numbers.

*Normalised.* The mean squared slope u is averaged over the lineage, v ← β·v + (1 − β)·u, corrected
for its start at zero. The rate w·√q / √v moves a parameter w in a round (root mean square), since
an estimate of q slopes moves it √(u / q) at rate 1. FZOO (https://arxiv.org/abs/2506.09034) has
β = 0, MEAZO (https://arxiv.org/abs/2605.03869) a mean over time.

*Auto.* To first order a step lowers the loss of its own batch by rate·u. If it has lowered it by
r times that, then 1 − r = rate·T / 2q is what curvature T took back. The fall of the loss of *all*
examples is largest where that is half of the signal's share ρ of u; the rest of u is noise of the
batches, whose falls do not count. So the rate rises while (1 − r) / ρ is below RAISE, falls above
LOWER, and falls at once, by what r itself says, if a batch's loss has risen.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt
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
LEAST_CUT, MOST_CUT = 1 / 2, 1 / 16  # of the rate, if a batch's loss has risen
LEAST = 0.1  # share of the signal that is believed
RANGE = 1 / 1024, 64.0  # of the normalised rate
LONGEST = 4.0  # times the usual way that one round may move a parameter


@dataclass(frozen=True)
class StepSettings:
    """What the rules know of a run."""

    movement: float  # w
    memory: float  # β
    queries: int  # q
    momentum: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """What a round says of steps."""

    energy: float  # u: Σ slopes² / q over the numbers of its entry
    signal: float | None = None  # part of u that is the gradient's; None: it cannot be told
    ratio: float | None = None  # r: fall of the last step's batch / fall that its slopes predicted


@dataclass(frozen=True)
class StepState:
    """What is remembered of the rounds of a lineage."""

    steps: int = 0
    mean: float = 0.0  # of u, not corrected for its start at zero
    signal: float | None = None  # the same of the signal
    recent: tuple[float, ...] = ()  # u of the last rounds that took a step
    rate: float = 0.0  # before schedule and rewinds; 0: none yet
    taken: float = 0.0  # the same, as the round of this state took it
    excess: float = RAISE  # smoothed (1 − r) / ρ
    climbs: bool = True

    def usual(self, memory: float) -> float:
        """Mean of u over the rounds so far, corrected; 0 if there are none."""
        return self.mean / (1 - power(memory, self.steps)) if self.steps else 0.0


Rule = Callable[[StepState, Evidence, StepSettings], StepState]


def normalised(state: StepState, evidence: Evidence, settings: StepSettings) -> StepState:
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
    usual = state.usual(settings.memory)
    after = _remember(state, evidence, settings.memory)
    if not state.rate:
        rate = rate_of(state, evidence.energy, settings)
        return replace(after, rate=rate, taken=rate)
    if evidence.ratio is not None:
        after = _adapt(after, evidence.ratio, _share(after))
    middle = rate_of(state, plausible(state, evidence.energy), settings)
    low, high = (middle * factor for factor in RANGE)
    after = replace(after, rate=min(max(after.rate, low), high))
    is_wild = evidence.energy > LONGEST**2 * usual
    taken = after.rate * (LONGEST * sqrt(usual / evidence.energy) if is_wild else 1.0)
    return replace(after, taken=taken)


RULES: dict[str, Rule] = {"normalised": normalised, "auto": auto}


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


def _remember(state: StepState, evidence: Evidence, beta: float) -> StepState:
    """Take a round's numbers in; a round of zeros says nothing, and does not come here."""
    energy, signal = plausible(state, evidence.energy), state.signal
    if evidence.signal is not None:
        seen = evidence.signal * (energy / evidence.energy)
        signal = beta * (signal or 0.0) + (1 - beta) * seen
    return replace(
        state,
        steps=state.steps + 1,
        mean=beta * state.mean + (1 - beta) * energy,
        signal=signal,
        recent=(*state.recent, energy)[-RECENT:],
    )


def _share(state: StepState) -> float:
    """The signal's share ρ of u, as far as it is believed; 1 if it cannot be told."""
    if state.signal is None or not state.mean:
        return 1.0
    return min(max(state.signal / state.mean, LEAST), 1.0)


def _adapt(state: StepState, ratio: float, share: float) -> StepState:
    """Change the rate by what the last step's batch says."""
    excess = (1 - ratio) / share
    if ratio < 0:
        cut = min(max(RAISE / excess, MOST_CUT), LEAST_CUT)
        return replace(state, rate=state.rate * cut, excess=RAISE, climbs=False)
    if not state.climbs:
        excess = SMOOTHING * state.excess + (1 - SMOOTHING) * excess
    if excess < RAISE:
        factor = CLIMB if state.climbs and excess < EASY else FACTOR
        return replace(state, rate=state.rate * factor, excess=excess)
    if excess > LOWER:
        return replace(state, rate=state.rate / FACTOR, excess=excess, climbs=False)
    return replace(state, excess=excess)
