"""What a site does in a round: a mode is a function from the configuration and the round to a plan.

Everything else about a mode follows from its plans: what a reply holds, how an entry is made of the
replies (``server/aggregation/combine.py``), what it costs. Every entry is applied in the same way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from shared.config.schema import Config

Along = Literal["keys", "gradient", "guidance"]
BACKWARD = 2  # forward passes that a backward pass costs


@dataclass(frozen=True)
class Plan:
    """One site's work in one round."""

    backpropagate: bool = False  # send an encoded gradient of a BP batch
    measure: bool = True  # measure q loss differences
    along: Along = "keys"  # plain directions, or tilted to the own gradient or the last guidance
    train: bool = False  # send the way of K local AdamW steps in the gradient's place

    @property
    def dense(self) -> bool:
        """Whether a reply holds one number per parameter."""
        return self.backpropagate or self.train


MEASURE = Plan()
GRADIENT = Plan(backpropagate=True, measure=False)


def asks_for_gradients(config: Config, round_: int) -> bool:
    """Whether this is a BP round of a mode that has some: 1, 1 + bp-interval and so on."""
    return (round_ - 1) % config.bp_interval == 0


def fo(config: Config, round_: int) -> Plan:
    """Backpropagated gradients alone (the first-order reference)."""
    return GRADIENT


def zo(config: Config, round_: int) -> Plan:
    """Loss differences alone."""
    return MEASURE


def calibrate(config: Config, round_: int) -> Plan:
    """Loss differences; now and then the gradient in their place."""
    return GRADIENT if asks_for_gradients(config, round_) else MEASURE


def instruct(config: Config, round_: int) -> Plan:
    """Loss differences; now and then along directions tilted to the gradient, and the gradient."""
    if asks_for_gradients(config, round_):
        return Plan(backpropagate=True, along="gradient")
    return replace(MEASURE, along="guidance" if config.guidance == "reuse" else "keys")


def fedavg(config: Config, round_: int) -> Plan:
    """Local AdamW steps, averaged (McMahan et al. 2017): the baseline that users would pick."""
    return Plan(measure=False, train=True)


MODES: Mapping[str, Callable[[Config, int], Plan]] = {
    "fo": fo,
    "zo": zo,
    "calibrate": calibrate,
    "instruct": instruct,
    "fedavg": fedavg,
}


def plan_of(config: Config, round_: int, can_backpropagate: bool = True) -> Plan:
    """What a site does in a round; one that cannot backpropagate measures along plain directions.

    The server asks for nothing in words: both sides know this function.
    """
    plan = MODES[config.mode](config, round_)
    return MEASURE if plan.dense and not can_backpropagate else plan


def measured_at(config: Config, round_: int) -> int:
    """The round whose parameters a round is measured at: the one before, or ``staleness`` earlier.

    Both sides know it, and every reply proves it: it has the digest of what it was measured at.
    """
    return max(0, round_ - 1 - config.staleness)


def cost(config: Config, plan: Plan) -> int:
    """Forward passes over ``zo-batch-size`` examples that a plan costs; a backward counts two."""
    queries = 2 * config.queries * config.local_steps
    if config.query_data == "shared":
        queries *= config.queries  # the batch is so many times larger
    batches = (plan.backpropagate + config.local_steps * plan.train) * config.bp_batch_size
    return queries * plan.measure + -(-(1 + BACKWARD) * batches // config.zo_batch_size)
