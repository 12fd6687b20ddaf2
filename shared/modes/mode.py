"""What a site does in a round: a mode is a function from configuration and round to a plan.

Everything else about a mode follows from its plans and its attributes: what a reply holds, how an
entry is made of the replies (``server/aggregation/combine.py``), what it costs. Every entry is
applied in the same way. No other file names a mode: a new one registers itself, and is complete.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from shared.base.registry import Registry
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


@dataclass(frozen=True)
class Mode:
    """A mode: its plans, and what other parts of the system have to know of it."""

    plan: Callable[[Config, int], Plan]  # of a round, for a site that can do everything
    measures: bool = True  # some rounds measure differences; otherwise all backpropagate
    has_interval: bool = False  # rounds 1, 1 + bp-interval, … are BP rounds
    takes_local_steps: bool = False  # a site may take several steps before it replies
    leans_on_gradient: bool = False  # an entry joins numbers and a dense gradient of one site
    averages_parameters: bool = False  # sites step by an optimizer of their own; the server adds
    options: type | None = None  # a dataclass of settings that only this mode has

    @property
    def always_backpropagates(self) -> bool:
        """Whether every round backpropagates, and none measures."""
        return not self.measures

    def keeps_guidance(self, config: Config) -> bool:
        """Whether the last dense gradient is kept, and later rounds measure along it."""
        return self.leans_on_gradient and config.bp.guidance == "reuse"


MODES: Registry[Mode] = Registry("mode", "shared.modes")


def mode_of(config: Config) -> Mode:
    """The mode of a run."""
    return MODES[config.training.mode]


def plan_of(config: Config, round_: int, can_backpropagate: bool = True) -> Plan:
    """What a site does in a round; one that cannot backpropagate measures along plain directions.

    The server asks for nothing in words: both sides know this function.
    """
    plan = mode_of(config).plan(config, round_)
    return MEASURE if plan.dense and not can_backpropagate else plan


def parameters_round(config: Config, round_: int) -> int:
    """The round whose parameters a round is measured at: the one before, or ``staleness`` earlier.

    Both sides know it, and every reply proves it: it has the digest of what it was measured at.
    """
    return max(0, round_ - 1 - config.federation.staleness)
