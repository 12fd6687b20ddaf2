"""The methods that are compared: each is a row of settings, with the paper that published them.

All run in our engine, with our ledger and our bytes: what differs is the rule. Each gets the best
of five rates that were tried in the same run.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dandelion.comparisons.methods import METHODS as COMPARED
from shared.base.options import Value

Settings = Mapping[str, Value]
FACTORS = (
    1.0,
    1 / 4,
    4.0,
    1 / 16,
    16.0,
)  # of the middle rate, in order
RATE, MOVEMENT = "learning-rate", "movement"


@dataclass(frozen=True)
class Method:
    """One way to train: its settings, and the one of them that is searched."""

    name: str
    source: str
    settings: Settings
    rate: str = RATE  # the setting that is searched; empty: none

    @property
    def is_ours(self) -> bool:
        """Whether it is what this project does by default, or may be set to do."""
        return self.name.startswith(OURS)


OURS = "ours"
TWO_POINT, FORWARD = f"{OURS}: two-point", f"{OURS}: forward"  # searched, as in the problems
PLAIN: Settings = {"mode": "zo", "optimizer": "sgd", "step": "plain", "guard-rewinds": 0}
MEZO = Method(
    "mezo",
    "Malladi et al. 2023, arXiv 2305.17333",
    {**PLAIN, "directions": "gaussian", "estimator": "two-point", "queries": 1},
)
DECOMFL = Method(
    "decomfl",
    "Li et al. 2024, arXiv 2405.15861",
    {
        **PLAIN,
        "directions": "gaussian",
        "estimator": "forward",
        "queries": 5,
        "centre-differences": False,
    },
)
FEDKSEED = Method(
    "fedkseed",
    "Qin et al. 2023, arXiv 2312.06353",
    {
        **PLAIN,
        "directions": "seed-pool",
        "estimator": "two-point",
        "queries": 1,
        "local-steps": 10,
        "seed-schedule": "independent",
    },
)
FZOO = Method(
    "fzoo",
    "Dang et al. 2025, arXiv 2506.09034",
    {
        **PLAIN,
        "directions": "rademacher",
        "estimator": "forward",
        "queries": 8,
        "centre-differences": False,
        "step": "normalised",
        "step-memory": 0.0,
    },
    MOVEMENT,
)
FEDAVG = Method("fedavg", "McMahan et al. 2017, arXiv 1602.05629", COMPARED["fedavg"])
FEDAVG_LORA = Method("fedavg-lora", "the same with Hu et al. 2021, arXiv 2106.09685",
                     COMPARED["fedavg-lora"])  # fmt: skip
PEERS = (MEZO, DECOMFL, FEDKSEED, FZOO, FEDAVG, FEDAVG_LORA)
PROBE = "linear-probe"  # not a run: dandelion/bench/learning/linear_probe.py
PROBE_SOURCE = "logistic regression on frozen features, all examples in one place"


def own_methods(rows: Mapping[str, Settings]) -> list[Method]:
    """Ours on a problem: each row with its own rule of the rate, and with the best of five rates.

    A row without a rule (``step = auto``) is only searched.
    """
    methods = []
    for name, settings in rows.items():
        label = f"{OURS}: {name}"
        if settings.get("step") == "auto":
            methods.append(Method(label, "step = auto, no rate is searched", settings, rate=""))
        else:
            methods.append(Method(label, "this project", settings))
    return methods
