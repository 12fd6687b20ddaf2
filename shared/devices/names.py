"""The devices that a run or a site names, checked: one, or several of one kind."""

import re

import torch

from shared.base.errors import ConfigError
from shared.config.schema import Config
from shared.modes.estimators import EXACT, estimator_of, evaluations_of, is_backpropagated
from shared.modes.mode import mode_of
from shared.objectives.reward import is_reward

DEVICE = re.compile(r"cpu|cuda(:\d+)?")
EXPECTED = "cpu, cuda, cuda:NUMBER, or several of one kind, as cuda:0,1 or cpu,cpu"


def devices_of(text: str) -> tuple[str, ...]:
    """The devices that a setting names, as torch names them: ``cuda:0,1`` is cuda:0 and cuda:1.

    Raises:
        ConfigError: a piece is empty or no device, kinds are mixed, or a card is named twice.
    """
    first, *more = (piece.strip() for piece in text.split(","))
    kind = first.partition(":")[0]
    names = [first, *(f"{kind}:{each}" if each.isdecimal() else each for each in more)]
    if reason := _find_fault(names):
        raise ConfigError(f"device: {EXPECTED}, expected, got {text!r}: {reason}")
    return tuple(name if ":" not in name else f"{kind}:{int(name[5:])}" for name in names)


def _find_fault(names: list[str]) -> str:
    """Why these names (one or more) cannot be a site's devices, or an empty string."""
    if wrong := [name for name in names if not DEVICE.fullmatch(name)]:
        return f"{wrong[0]!r} is no device" if wrong[0] else "a piece is empty"
    if len({name.partition(":")[0] for name in names}) > 1:
        return "losses of a CPU and a card differ in their last bits"
    cards = [name for name in names if name != "cpu"]
    if len(names) > 1 and "cuda" in cards:
        return "each of several cards needs its number"
    if len({int(name[5:]) for name in cards if name != "cuda"}) < len(cards) > 1:
        return "a card is named twice: it would hold two replicas and be no faster"
    return ""


def kind_of(devices: str) -> str:
    """The kind that a text of one device or several begins with; it may be anything."""
    return re.split("[:,]", devices, maxsplit=1)[0]


def check_presence(text: str) -> None:
    """Check that the devices of a setting are visible to torch here.

    Raises:
        ConfigError: it names a card and there is none, or one with too high a number.
    """
    cards = [torch.device(name).index or 0 for name in devices_of(text) if name != "cpu"]
    if not cards:
        return
    if not torch.cuda.is_available():
        raise ConfigError(f"device {text!r}: no CUDA device is visible here; use cpu")
    if max(cards) >= (count := torch.cuda.device_count()):
        raise ConfigError(
            f"device {text!r}: numbers up to {count - 1} expected, since torch sees {count} CUDA "
            f"device{'s' * (count > 1)} here, got {max(cards)}"
        )


def check_devices(c: Config) -> None:
    """Refuse several devices for a run that has nothing for each of them to measure.

    Raises:
        ConfigError: no such devices, or settings that leave some of them idle.
    """
    count = len(devices_of(c.run.device))
    if count > 1 and (reason := _why_idle(c, count)):
        raise ConfigError(f"device = {c.run.device!r} with {reason}; use one device")


def _why_idle(c: Config, count: int) -> str:
    """Why so many devices cannot share out a step's evaluations, or an empty string."""
    if not mode_of(c).measures:
        return f"mode {c.training.mode!r}: no directions are measured that could be shared out"
    if is_backpropagated(c):
        return "estimator 'exact': one backward pass gives all slopes, so there is nothing to share"
    if estimator_of(c) == EXACT or c.model.is_linear:
        return f"scope {c.model.scope!r}: a readout's slopes take no pass that could be shared out"
    if is_reward(c.zo.objective):
        return (
            f"objective {c.zo.objective!r}: a reward may write texts, and torch draws them from "
            "one generator for the whole process"
        )
    at_once = c.zo.parallel_queries
    pieces = -(-c.zo.queries // at_once) if at_once > 1 else evaluations_of(c)
    if pieces < count:
        what = f"parallel-queries = {at_once} and " if at_once > 1 else ""
        return (
            f"{what}queries = {c.zo.queries}: {count} devices expected at least {count} forward "
            f"passes of a step to share out, got {pieces}"
        )
    return ""
