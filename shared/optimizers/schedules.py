"""The learning rate is a pure function of the round."""

import math
from collections.abc import Callable, Mapping

from shared.base.errors import UnknownNameError

SCHEDULES: Mapping[str, Callable[[float], float]] = {  # from progress 0 .. 1 to a height 1 .. 0
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2,
}


def learning_rate(
    round_: int,
    *,
    rate: float,
    schedule: str,
    warmup_rounds: int,
    rounds: int,
    final_fraction: float = 0.0,
) -> float:
    """Return the rate of ``round_`` (1-based) in a run of ``rounds``.

    It climbs from rate / warmup_rounds in round 1 to ``rate`` in the last round of the warm-up, is
    ``rate`` in the round after it too, and then falls as ``schedule`` says towards final_fraction *
    rate. That floor is met in the round after the last, so no round is spent on a rate of zero.
    The server alone computes it and sends it in the entry, so hosts may differ in their cosine.

    Raises:
        UnknownNameError: no schedule has this name.
    """
    if schedule not in SCHEDULES:
        raise UnknownNameError("schedule", schedule, SCHEDULES)
    if round_ <= warmup_rounds:
        return rate * round_ / warmup_rounds
    progress = (round_ - 1 - warmup_rounds) / max(1, rounds - warmup_rounds)
    height = SCHEDULES[schedule](min(1.0, progress))
    return rate * (final_fraction + (1.0 - final_fraction) * height)
