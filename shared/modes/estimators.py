"""Estimators: how a site gets q slopes from evaluations of its loss, and which one a run uses.

With *two-point* differences (Spall 1992) a site evaluates each direction at both signs: 2q
evaluations. With *forward* differences it evaluates l₀ = L(θ) once and each direction at one sign:
q + 1. It sends δₖ = 2·(L(θ + εzₖ) − l₀), so that δ / 2ε is the slope for both. *Exact* slopes need
no perturbation: they are the products of z and a gradient, which has a closed form if the loss
depends on the trained parameters through a linear map, and is backpropagated elsewhere. A site that
cannot backpropagate then measures two-point differences: they have the same limit.
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


def is_backpropagated(config: Config) -> bool:
    """Whether the slopes of a run are exact, and have no closed form."""
    return estimator_of(config) == EXACT and not config.model.is_linear


def estimator_at(config: Config, can_backpropagate: bool) -> Estimator:
    """What a site measures by: the run's estimator.

    Two-point differences take the place of slopes that it would have to backpropagate and cannot.
    """
    if is_backpropagated(config) and not can_backpropagate:
        return TWO_POINT
    return estimator_of(config)


def evaluations_of(config: Config, can_backpropagate: bool = True) -> int:
    """Evaluations of one batch's loss in one step of q queries at a site.

    Exact slopes take one, and a backward pass if they have no closed form.
    """
    queries, exact = config.zo.queries, 1 + BACKWARD * is_backpropagated(config)
    each = {EXACT: exact, FORWARD: 1 + queries, TWO_POINT: 2 * queries}
    return each[estimator_at(config, can_backpropagate)]


def cost(
    config: Config, plan: Plan, examples: int, more: int = 0, can_backpropagate: bool = True
) -> int:
    """Forward passes over ``zo-batch-size`` examples that a plan costs; a backward counts two.

    Args:
        config: of the run.
        plan: of the site.
        examples: the number that the site has: a batch, if ``zo-batch-size`` is 0.
        more: evaluations of the step's batch beside those of the estimate.
        can_backpropagate: whether the site can; see ``estimator_at``.
    """
    steps, batch = config.training.local_steps, config.zo.batch_size or examples
    evaluations = evaluations_of(config, can_backpropagate) * steps + more
    if config.zo.query_data == "shared":
        evaluations *= config.zo.queries  # the batch is so many times larger
    batches = plan.backpropagate + steps * plan.train
    backpropagated = batches * (config.bp.batch_size or examples)
    return evaluations * plan.measure + -(-(1 + BACKWARD) * backpropagated // batch)
