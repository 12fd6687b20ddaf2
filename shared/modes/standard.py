"""The five modes: scalars alone, gradients alone, two mixtures of both, and federated averaging."""

from dataclasses import dataclass, replace

from shared.base.options import option
from shared.config.schema import Config
from shared.modes.mode import GRADIENT, MEASURE, MODES, Mode, Plan


def is_bp_round(config: Config, round_: int) -> bool:
    """Whether this is a BP round of a mode that has some: 1, 1 + bp-interval and so on."""
    return (round_ - 1) % config.bp.interval == 0


def zo(config: Config, round_: int) -> Plan:
    """Loss differences alone."""
    return MEASURE


def fo(config: Config, round_: int) -> Plan:
    """Backpropagated gradients alone (the first-order reference)."""
    return GRADIENT


def calibrate(config: Config, round_: int) -> Plan:
    """Loss differences; now and then the gradient in their place."""
    return GRADIENT if is_bp_round(config, round_) else MEASURE


def instruct(config: Config, round_: int) -> Plan:
    """Loss differences; now and then along directions tilted to the gradient, and the gradient."""
    if is_bp_round(config, round_):
        return Plan(backpropagate=True, along="gradient")
    return replace(MEASURE, along="guidance" if config.bp.guidance == "reuse" else "keys")


def fedavg(config: Config, round_: int) -> Plan:
    """Local AdamW steps, averaged (McMahan et al. 2017): the baseline that users would pick."""
    return Plan(measure=False, train=True)


@dataclass(frozen=True, kw_only=True)
class LocalAdamW:
    """Options of the AdamW with which sites step in mode ``fedavg``."""

    beta1: float = option(0.9, "decay of the running mean of the gradient", at_least=0, below=1)
    beta2: float = option(0.999, "decay of the mean of its square", at_least=0, below=1)
    epsilon: float = option(1e-8, "added to the root of that mean", key="adam-epsilon", above=0)
    weight_decay: float = option(0.0, "decoupled decay of the parameters", at_least=0)


MODES.register("zo")(Mode(zo, takes_local_steps=True))
MODES.register("fo")(Mode(fo, measures=False))
MODES.register("calibrate")(Mode(calibrate, has_interval=True))
MODES.register("instruct")(Mode(instruct, has_interval=True, leans_on_gradient=True))
MODES.register("fedavg")(
    Mode(
        fedavg,
        measures=False,
        takes_local_steps=True,
        averages_parameters=True,
        options=LocalAdamW,
    )
)
