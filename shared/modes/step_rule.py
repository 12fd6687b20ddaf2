"""Which rule makes the learning rate of a round: a setting, the slopes, or the falls of the loss.

With ``step = plain`` it is ``learning-rate``. With ``normalised`` the server divides by the size of
the slopes, so that a parameter moves ``movement`` in a round, whatever the scale of the loss. With
``auto`` it then follows how far each step's own batch has fallen against what its slopes predicted
(``server/steps/rules.py``), where that can be told, and is plain elsewhere, or if a rate is given.
"""

from typing import Literal, cast

from shared.config.schema import Config
from shared.modes.estimators import TWO_POINT, estimator_at
from shared.modes.mode import mode_of, parameters_round

StepRule = Literal["plain", "normalised", "auto"]
PLAIN: StepRule = "plain"
NORMALISED: StepRule = "normalised"
AUTO: StepRule = "auto"
VERSION = 2  # of auto; 1 took the mean signal over the mean of u, which the first rounds governed
LARGEST_MOVEMENT = 5e-3  # good for the byte-level GPT of 0.12 million parameters
FITTED = 3e-3, 7.1e6  # a good movement, and of how many parameters: two blocks of SmolLM2
FALL = 2 / 3  # exponent: then it is 2e-5 at 13 billion, where peers move 2e-5 to 9e-5


def step_rule_of(config: Config) -> StepRule:
    """The rule of a run: as ``step`` says; ``auto`` is plain if it has no ground to stand on."""
    named = cast(StepRule, config.optimizer.step)
    return PLAIN if named == AUTO and why_plain(config) else named


def rate_set(config: Config) -> float | None:
    """The learning rate that settings say; None if a rule makes it of what was measured."""
    return config.optimizer.rate if step_rule_of(config) == PLAIN else None


def why_plain(config: Config) -> str:
    """Why ``step = auto`` keeps to ``learning-rate`` with other settings; empty: it does not."""
    if reason := why_not_normalised(config):
        return reason
    reasons = {
        f"learning-rate {config.optimizer.learning_rate:g} is given": config.optimizer.step_version
        > 1
        and config.optimizer.learning_rate > 0,
        f"privacy {config.privacy.mode!r}: falls of the loss are not sent": config.privacy.is_local,
        "site-loss 'false': it rests on losses": not config.privacy.site_loss,
        "momentum: a step goes on in later rounds": momentum_of(config) > 0,
        "seed-schedule 'independent': a site's batch also falls along the directions of others, "
        "whose slopes it has not measured": config.zo.seed_schedule == "independent",
        "local-steps: the batch of one step falls by the others too": config.training.local_steps
        > 1,
        "query-data 'fresh': each query has a batch of its own": config.zo.query_data == "fresh",
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def why_not_normalised(config: Config) -> str:
    """Why slopes cannot make the rate of a run's rounds; empty: they can."""
    mode, name = mode_of(config), config.optimizer.name
    if not mode.measures or mode.has_interval:
        return f"mode {config.training.mode!r}: its rounds, or some, take gradients, not slopes"
    if name != "sgd":
        return f"optimizer {name!r}: it divides by the size of its gradients itself"
    return ""


def momentum_of(config: Config) -> float:
    """Share of the last step that the next one keeps."""
    return float(config.options.get("momentum", 0.0))


def compares(config: Config) -> bool:
    """Whether sites measure the batch of a step before and after it."""
    return step_rule_of(config) == AUTO


def comparisons_of(
    config: Config, round_: int, before: bool, after: bool, can_backpropagate: bool = True
) -> int:
    """Evaluations of a batch that a reply with these losses cost beside its numbers.

    A baseline of forward differences is the first of them, and all examples are one batch.
    """
    is_same = parameters_round(config, round_) + 1 == round_ or not config.zo.batch_size
    is_known = estimator_at(config, can_backpropagate) != TWO_POINT and is_same
    return (before and not is_known) + (after and config.zo.batch_size > 0)


def movement_of(config: Config, parameters: int) -> float:
    """Root mean square way of a parameter in a round: ``movement``, or by their number if it is 0.

    The default is fitted to what was measured, and to what published methods move: 5e-3 at 0.12
    million parameters, 3e-3 at 7.1 million, 2e-5 at 13 billion.
    """
    if config.optimizer.movement:
        return config.optimizer.movement
    size, count = FITTED
    return float(f"{min(LARGEST_MOVEMENT, size * (count / parameters) ** FALL):.2g}")
