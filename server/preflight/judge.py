"""The preflight tries settings before the first round: eps, and steps at some learning rates."""

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
from shared.base.files import write_atomically
from shared.config.schema import Config
from shared.modes.estimators import EXACT, estimator_of
from shared.modes.mode import mode_of, plan_of
from shared.modes.step_rule import PLAIN, step_rule_of
from shared.optimizers.gradient import Gradient, coefficients_of, differences_of
from shared.training.oracle import Oracle

PREFLIGHT_FILE = "preflight.json"
GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # eps that are tried in addition to the given one
DIRECTIONS, BATCHES, TRIALS = 8, 4, 3
MOST_ROWS = 64  # that steps are measured on, and as many that they are judged by
CLEAR, USELESS = 10.0, 1.5  # signal to noise of a loss difference: fine from, refused below
LASTING, HALVINGS = 4, 5  # rounds in a row at a rate, and the most halvings of it
SLOW = 10.0  # times below the suggested rate
OCTAVES = range(-4, 5)  # powers of two around the given rate that are tried first
FARTHEST = 24  # powers of two that are tried beyond those, in one direction
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
    """One step at several rates: the change of the loss of other examples than the step's."""

    key: str  # the setting
    given: float
    change: dict[float, float]  # rate to mean change over the trials
    best: float  # of those, where the loss falls most
    suggested: float  # the same or less, so that rounds in a row go on falling
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Preflight:
    """Measurements at the model that a run starts from, and the verdict on its settings."""

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
        settings = {r.key: r.suggested for r in self.rates if r.verdict != "fine"}
        if self.suggested_eps != self.given_eps:
            settings["eps"] = self.suggested_eps
        return settings

    def to_json(self) -> str:
        """All of it as JSON; numbers that are not finite are null."""
        values: dict[str, Any] = asdict(self) | {"suggestion": self.suggestion()}
        return json.dumps(finite(values), indent=1, ensure_ascii=False, allow_nan=False)

    def write(self, folder: Path) -> Path:
        """Write ``preflight.json`` into a folder and return its path."""
        write_atomically(folder / PREFLIGHT_FILE, self.to_json().encode())
        return folder / PREFLIGHT_FILE


def finite(value: Any) -> Any:  # noqa: ANN401  (what JSON can hold)
    """The same value with null for each number that is not finite, and texts as keys."""
    if isinstance(value, dict):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_long(config: Config) -> bool:
    """Whether a run has so many rounds that it gets a preflight."""
    return 0 < config.guard.preflight_rounds <= config.training.rounds


def preflight(config: Config, oracle: Oracle, examples: Tensor) -> Preflight:
    """Try the settings on held-out examples (n, …), and leave the parameters bit for bit.

    Costs 300 forward passes, and 2 q × sites' batches for each of some dozen trial rounds.
    """
    probe = Probe(config, oracle, *split_examples(examples, MOST_ROWS))
    measures = any(plan_of(config, round_).measure for round_ in (1, 2))
    noise = probe.noise()
    table = eps_table(probe, noise) if measures else []
    suggested, verdict, reasons = (
        judge_eps(table, config.zo.eps) if measures else (config.zo.eps, *FINE)
    )
    tried = suggested
    if estimator_of(config) == EXACT:  # nothing of the run is perturbed, but trial steps are
        suggested, (verdict, reasons) = config.zo.eps, FINE
    slopes = coefficients_of(probe.differences(tried, DIRECTIONS, BATCHES), tried, 1)
    within = float(np.mean(np.var(slopes, axis=1, ddof=1)))
    between = max(float(np.mean(slopes.mean(1) ** 2)) - within / BATCHES, 0.0)
    rates = list(_rates(probe, tried)) if verdict != "refused" else []
    for row in rates:
        if row.verdict != "fine":
            verdict, reasons = "doubtful", [*reasons, row.reason]
    sites = config.federation.clients_per_round or config.federation.num_clients
    count = config.zo.queries * (sites if config.zo.seed_schedule == "independent" else 1)
    return Preflight(
        loss=oracle.loss(probe.other_rows),
        loss_noise=noise,
        eps=table,
        given_eps=config.zo.eps,
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
    """Do the preflight of a long run, and write it into the run's folder.

    Raises:
        ConfigError: the settings cannot work.
    """
    result = preflight(config, oracle, examples)
    path = result.write(folder)
    if result.verdict == "refused":
        reasons = "; ".join(result.reasons)
        raise ConfigError(f"{reasons} ({path}; preflight-rounds = 0 goes without)")
    return result


def eps_table(probe: Probe, noise: float) -> list[EpsRow]:
    """Split loss differences at several eps into slope, rounding and curvature.

    The slopes are taken to be true at the eps at which they change least from one to the next.
    """
    grid = sorted({*GRID, probe.config.zo.eps})
    differences = [probe.differences(eps, DIRECTIONS // 2)[:, 0] for eps in grid]
    slopes = np.array([coefficients_of(d, e, 1) for d, e in zip(differences, grid, strict=True)])
    changes = [rms(slopes[k] - slopes[k + 1]) for k in range(len(grid) - 1)]
    inner = range(1, len(grid) - 1)
    true = slopes[min(inner, key=lambda k: max(changes[k - 1], changes[k]))]
    rows = []
    for eps, difference in zip(grid, differences, strict=True):
        expected = differences_of(true, eps, 1)
        rounding, bend = math.sqrt(2) * noise, rms(difference - expected)
        error = math.hypot(rounding, bend)
        ratio = differences_of(rms(true), eps, 1) / error if error else math.inf
        rows.append(EpsRow(eps, rms(difference), rounding, bend, ratio))
    return rows


def judge_eps(table: list[EpsRow], eps: float) -> tuple[float, Verdict, list[str]]:
    """Return the eps to use, the verdict on the given one, and the reasons against it."""
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
    """Judge the learning rates of the run: of rounds that measure, and of those that do not."""
    c = probe.config
    plans = [plan_of(c, round_) for round_ in (1, 2)]
    by_setting = step_rule_of(c) == PLAIN
    if by_setting and any(plan.measure and not plan.backpropagate for plan in plans):
        steps = [probe.estimate(eps, trial) for trial in range(1, TRIALS + 1)]
        yield judge_rates("learning-rate", c.optimizer.rate, probe, steps, eps)
    if any(plan.backpropagate for plan in plans):
        only = mode_of(c).always_backpropagates and not c.bp.learning_rate
        key = "learning-rate" if only else "bp-learning-rate"
        given = c.bp.learning_rate or c.optimizer.rate
        yield judge_rates(key, given, probe, [probe.backpropagate()])


def judge_rates(
    key: str, given: float, probe: Probe, steps: list[Gradient], eps: float | None = None
) -> Rates:
    """Judge a learning rate by the effect of single steps at rates around it.

    With momentum a step is repeated: a rate counts 1 / (1 − momentum) times. With ``eps`` the best
    rate is then tried for LASTING rounds in a row, and halved until they lower the loss more than
    one step does: noise adds up from round to round, so the best single step may be too long.
    """
    before = probe.oracle.loss(probe.other_rows)
    momentum_factor = 1 / (1 - float(probe.config.options.get("momentum", 0.0)))

    def change(rate: float) -> float:
        after = [probe.after_step(step, rate * momentum_factor) for step in steps]
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
    """Halve the best rate until several rounds lower the loss more than one step does."""
    rate = best
    for _ in range(HALVINGS):
        if in_a_row(rate) <= tried.get(rate, 0.0):
            break
        rate /= 2
    return rate


def search_rate(given: float, change: Callable[[float], float]) -> dict[float, float]:
    """Return the change at powers of two times the given rate, until the lowest is inside."""
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
