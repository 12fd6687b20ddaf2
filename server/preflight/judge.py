"""Settings are tried out before the first round: eps against rounding, steps at some rates."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from server.preflight.probe import Probe, rms, split_examples
from shared.base.errors import ConfigError
from shared.config.schema import Config
from shared.modes.mode import mode_of, plan_of
from shared.optimizers.gradient import Gradient
from shared.replica.snapshot import write_atomically
from shared.training.oracle import Oracle

FILE = "preflight.json"
GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # eps that are tried beside the given one
DIRECTIONS, BATCHES, TRIALS = 8, 4, 3
JUDGED = 64  # most rows that steps are measured on, and judged by
CLEAR, USELESS = 10.0, 1.5  # signal to noise of a loss difference: fine from here, refused below
LASTING, HALVINGS = 4, 5  # rounds in a row at a rate, and how often it is halved at the most
SLOW = 10.0  # times below the suggested rate
OCTAVES = range(-4, 5)  # powers of two around the given rate that are tried first
FARTHEST = 24  # powers of two that are gone on in one direction
Verdict = Literal["fine", "doubtful", "refused"]


@dataclass(frozen=True)
class EpsRow:
    """Loss differences at one eps."""

    eps: float
    difference: float  # root mean square of L(θ+εz) − L(θ−εz)
    rounding: float  # standard deviation of what rounding adds to it
    bend: float  # root mean square of what curvature, or a lost perturbation, adds to it
    signal_to_noise: float


@dataclass(frozen=True)
class Rates:
    """One step at several rates: change of the loss of examples that it was not taken from."""

    key: str  # the setting
    given: float
    change: dict[float, float]  # rate to mean change over the trials
    best: float  # of those, where the loss falls most
    suggested: float  # the same or less, so that rounds in a row go on falling
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Preflight:
    """What was measured at the model that a run starts from, and what follows from it."""

    loss: float
    loss_noise: float  # standard deviation of its rounding error
    eps: list[EpsRow]
    given_eps: float
    suggested_eps: float
    gradient_norm: float  # estimated by the slopes along DIRECTIONS directions
    batch_share: float  # share of the slopes' variance that is the batches', not the directions'
    cosine: float  # expected, of a round's estimate to the gradient
    rates: list[Rates] = field(default_factory=list)
    verdict: Verdict = "fine"
    reasons: list[str] = field(default_factory=list)

    def suggestion(self) -> dict[str, float]:
        """The settings that differ from the given ones."""
        found = {r.key: r.suggested for r in self.rates if r.verdict != "fine"}
        if self.suggested_eps != self.given_eps:
            found["eps"] = self.suggested_eps
        return found

    def to_json(self) -> str:
        """All of it as text; what is not finite is null."""
        values: dict[str, Any] = asdict(self) | {"suggestion": self.suggestion()}
        return json.dumps(_finite(values), indent=1, ensure_ascii=False, allow_nan=False)

    def write(self, folder: Path) -> Path:
        """Put ``preflight.json`` into a folder."""
        write_atomically(folder / FILE, self.to_json().encode())
        return folder / FILE


def _finite(value: Any) -> Any:  # noqa: ANN401  (what JSON can hold)
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_long(config: Config) -> bool:
    """Whether a run has so many rounds that its settings are tried out first."""
    return 0 < config.guard.preflight_rounds <= config.training.rounds


def preflight(config: Config, oracle: Oracle, examples: Tensor) -> Preflight:
    """Try the settings out on held-out examples (n, …).

    Costs 300 forward passes, and 2 q × sites' batches for each of some dozen trial rounds.

    The parameters are as they were when this is done, to the bit.
    """
    probe = Probe(config, oracle, *split_examples(examples, JUDGED))
    measures = any(plan_of(config, round_).measure for round_ in (1, 2))
    noise = probe.noise()
    table = eps_table(probe, noise) if measures else []
    suggested, verdict, reasons = judge_eps(table, config.eps) if measures else (config.eps, *FINE)
    slopes = probe.differences(suggested, DIRECTIONS, BATCHES) / (2 * suggested)
    within = float(np.mean(np.var(slopes, axis=1, ddof=1)))
    between = max(float(np.mean(slopes.mean(1) ** 2)) - within / BATCHES, 0.0)
    rates = list(_rates(probe, suggested)) if verdict != "refused" else []
    for row in rates:
        if row.verdict != "fine":
            verdict, reasons = "doubtful", [*reasons, row.reason]
    sites = config.clients_per_round or config.num_clients
    count = config.queries * (sites if config.seed_schedule == "independent" else 1)
    return Preflight(
        loss=oracle.loss(probe.apart),
        loss_noise=noise,
        eps=table,
        given_eps=config.eps,
        suggested_eps=suggested,
        gradient_norm=math.sqrt(between),
        batch_share=within / (within + between) if within + between else 0.0,
        cosine=math.sqrt(count / (count + oracle.replica.model.layout.parameters + 1)),
        rates=rates,
        verdict=verdict,
        reasons=reasons,
    )


FINE: tuple[Verdict, list[str]] = ("fine", [])


def check_before(config: Config, oracle: Oracle, examples: Tensor, folder: Path) -> Preflight:
    """The preflight of a long run, written into its folder.

    Raises:
        ConfigError: the settings cannot work.
    """
    found = preflight(config, oracle, examples)
    path = found.write(folder)
    if found.verdict == "refused":
        raise ConfigError(f"{'; '.join(found.reasons)} ({path}; preflight-rounds = 0 goes without)")
    return found


def eps_table(probe: Probe, noise: float) -> list[EpsRow]:
    """Loss differences at some eps: what of them is slope, rounding and curvature.

    The true slopes are taken to be those at the eps where they change least from one to the next.
    """
    grid = sorted({*GRID, probe.config.eps})
    found = [probe.differences(eps, DIRECTIONS // 2)[:, 0] for eps in grid]
    slopes = np.array([d / (2 * eps) for d, eps in zip(found, grid, strict=True)])
    changes = [rms(slopes[k] - slopes[k + 1]) for k in range(len(grid) - 1)]
    places = range(1, len(grid) - 1)
    true = slopes[min(places, key=lambda k: max(changes[k - 1], changes[k]))]
    rows = []
    for eps, difference in zip(grid, found, strict=True):
        rounding, bend = math.sqrt(2) * noise, rms(difference - 2 * eps * true)
        wrong = math.hypot(rounding, bend)
        ratio = 2 * eps * rms(true) / wrong if wrong else math.inf
        rows.append(EpsRow(eps, rms(difference), rounding, bend, ratio))
    return rows


def judge_eps(table: list[EpsRow], eps: float) -> tuple[float, Verdict, list[str]]:
    """The eps to use, whether the given one will do, and why not."""
    given = next(row for row in table if row.eps == eps)
    best = max(table, key=lambda row: row.signal_to_noise)
    if given.signal_to_noise >= CLEAR:
        return eps, "fine", []
    below = given.rounding > given.bend or eps < best.eps
    cause = "rounding drowns it" if below else "curvature bends it"
    reason = (
        f"eps = {eps:g}: a loss difference is {given.difference:.2g}, of which rounding is "
        f"{given.rounding:.2g} and bend {given.bend:.2g}: {cause} (signal to noise "
        f"{given.signal_to_noise:.2g}); at eps = {best.eps:g} it is {best.signal_to_noise:.3g}"
    )
    return best.eps, "refused" if given.signal_to_noise < USELESS else "doubtful", [reason]


def _rates(probe: Probe, eps: float) -> Iterator[Rates]:
    """The rates of the rounds that the run will have: those that measure, those that do not."""
    c = probe.config
    plans = [plan_of(c, round_) for round_ in (1, 2)]
    if any(plan.measure and not plan.backpropagate for plan in plans):
        steps = [probe.estimate(eps, trial) for trial in range(1, TRIALS + 1)]
        yield judge_rates("learning-rate", c.learning_rate, probe, steps, eps)
    if any(plan.backpropagate for plan in plans):
        only = mode_of(c).always_backpropagates and not c.bp_learning_rate
        key = "learning-rate" if only else "bp-learning-rate"
        given = c.bp_learning_rate or c.learning_rate
        yield judge_rates(key, given, probe, [probe.backpropagated()])


def judge_rates(
    key: str, given: float, probe: Probe, steps: list[Gradient], eps: float | None = None
) -> Rates:
    """Take single steps at rates around the given one, and judge it by them.

    With momentum a step goes on: a rate counts 1 / (1 − momentum) times. With ``eps`` the best rate
    is then tried for LASTING rounds in a row, and halved until they bring more than one step does:
    noise adds up from round to round, and a step that is the best alone may be too long for many.
    """
    before = probe.oracle.loss(probe.apart)
    goes_on = 1 / (1 - float(probe.config.options.get("momentum", 0.0)))

    def change(rate: float) -> float:
        after = [probe.after_step(step, rate * goes_on) for step in steps]
        value = float(np.mean(after)) - before
        return value if math.isfinite(value) else math.inf

    def in_a_row(rate: float) -> float:
        value = probe.after_rounds(eps or 0.0, rate, LASTING) - before
        return value if math.isfinite(value) else math.inf

    tried = search_rate(given, change)
    best = min(tried, key=lambda rate: (tried[rate], rate))
    lasting = best if eps is None or tried[best] >= 0 else lasting_rate(tried, best, in_a_row)
    suggested = float(f"{lasting:.2g}")
    if tried[best] >= 0:
        reason = f"{key}: no step along the estimate lowers the loss; use more queries or examples"
        return Rates(key, given, tried, best, given, "doubtful", reason)
    if tried[given] > 0:
        reason = f"{key} = {given:g}: one step changes the loss by {tried[given]:+.3g}, a step at "
        reason += f"{best:.2g} by {tried[best]:+.3g}: it would diverge"
        return Rates(key, given, tried, best, suggested, "doubtful", reason)
    if given > lasting and (rise := in_a_row(given)) > 0:
        reason = f"{key} = {given:g}: {LASTING} rounds in a row change the loss by {rise:+.3g}: it "
        reason += f"would diverge, though one step changes it by {tried[given]:+.3g}"
        return Rates(key, given, tried, best, suggested, "doubtful", reason)
    if given * SLOW < lasting:
        reason = f"{key} = {given:g}: one step changes the loss by {tried[given]:+.3g}, a step at "
        reason += f"{best:.2g} by {tried[best]:+.3g}: it would take long"
        return Rates(key, given, tried, best, suggested, "doubtful", reason)
    return Rates(key, given, tried, best, suggested, "fine", "")


def lasting_rate(
    tried: dict[float, float], best: float, in_a_row: Callable[[float], float]
) -> float:
    """The best rate or a half, a quarter … of it: the first at which rounds add up."""
    rate = best
    for _ in range(HALVINGS):
        if in_a_row(rate) <= tried.get(rate, 0.0):
            break
        rate /= 2
    return rate


def search_rate(given: float, change: Callable[[float], float]) -> dict[float, float]:
    """The change at the given rate and at powers of two of it, until the lowest is inside."""
    tried = {given * 2.0**k: change(given * 2.0**k) for k in OCTAVES}
    for _ in range(FARTHEST):
        low, high = min(tried), max(tried)
        best = min(tried, key=lambda rate: (tried[rate], rate))
        if tried[best] >= 0 or best == low:
            tried[low / 2] = change(low / 2)
        elif best == high:
            tried[high * 2] = change(high * 2)
        else:
            break
    return dict(sorted(tried.items()))
