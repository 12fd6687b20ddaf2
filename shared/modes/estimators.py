"""Estimators: how a site gets q slopes from evaluations of its loss, and which one a run uses.

With *two-point* differences (Spall 1992) a site evaluates each direction at both signs: 2q
evaluations. With *forward* differences it evaluates l₀ = L(θ) once and each direction at one sign:
q + 1. It sends δₖ = 2·(L(θ + εzₖ) − l₀), so that δ / 2ε is the slope for both. *Exact* slopes need
no perturbation; they exist if the loss depends on the trained parameters through a linear map.
"""

from typing import Literal, cast

from shared.config.schema import Config
from shared.modes.mode import BACKWARD, Plan, mode_of

Estimator = Literal["two-point", "forward", "exact"]
TWO_POINT: Estimator = "two-point"
FORWARD: Estimator = "forward"
EXACT: Estimator = "exact"
DEFAULT: Estimator = FORWARD  # what ``auto`` is, unless slopes are exact or it is refused


def estimator_of(config: Config) -> Estimator:
    """The estimator of a run: as ``estimator`` says, or what ``auto`` stands for.

    Forward differences are not chosen by ``auto`` if ``refusal_of_forward`` has a reason.
    """
    named = config.zo.estimator
    if named != "auto":
        return cast(Estimator, named)
    if config.model.is_linear and config.zo.objective == "loss":
        return EXACT
    return TWO_POINT if refusal_of_forward(config) else DEFAULT


def with_estimator(config: Config) -> Config:
    """The configuration with the estimator that ``auto`` stands for, as a run records it.

    A default may change; what a run has recorded does not.
    """
    if config.zo.estimator != "auto":
        return config
    return config.replace(estimator=estimator_of(config))


def refusal_of_forward(config: Config) -> str:
    """Why forward differences cannot be used with other settings; empty: they can."""
    if mode_of(config).leans_on_gradient:
        return f"mode {config.training.mode!r}: slopes along a gradient are measured at both sides"
    if config.zo.query_data == "fresh":
        return (
            "query-data 'fresh': each batch would need a baseline of its own, so forward "
            "differences would cost 2q evaluations too"
        )
    return ""


def evaluations_of(config: Config) -> int:
    """Evaluations of one batch's loss in one step of q queries; exact slopes take one."""
    queries = config.zo.queries
    return {EXACT: 1, FORWARD: 1 + queries, TWO_POINT: 2 * queries}[estimator_of(config)]


def cost(config: Config, plan: Plan, examples: int, more: int = 0) -> int:
    """Forward passes over ``zo-batch-size`` examples that a plan costs; a backward counts two.

    Args:
        config: of the run.
        plan: of the site.
        examples: the number that the site has: a batch, if ``zo-batch-size`` is 0.
        more: evaluations of the step's batch beside those of the estimate.
    """
    steps, batch = config.training.local_steps, config.zo.batch_size or examples
    evaluations = evaluations_of(config) * steps + more
    if config.zo.query_data == "shared":
        evaluations *= config.zo.queries  # the batch is so many times larger
    batches = plan.backpropagate + steps * plan.train
    backpropagated = batches * (config.bp.batch_size or examples)
    return evaluations * plan.measure + -(-(1 + BACKWARD) * backpropagated // batch)
