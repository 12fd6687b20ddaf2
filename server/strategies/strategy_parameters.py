"""The parameters of a strategy, checked as the settings of any run are.

What is a setting of a run too has its name, its range and its default from there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import MetricRecord, RecordDict
from torch import nn

from shared.apps.flat_module import dtype_of
from shared.base.errors import ConfigError
from shared.base.options import Value, option, options_of
from shared.config.schema import Config, settings
from shared.training.validate import configure

AggregateMetrics = Callable[[list[RecordDict], str], MetricRecord]


@dataclass(kw_only=True, eq=False)
class StrategyParameters:
    """What ``ZerothOrder``, which explains them, is made of.

    Raises:
        ConfigError: a value has the wrong type, is out of range, or does not fit another.
    """

    model: nn.Module
    queries: int = 16
    eps: float = 1e-3
    lr: float | None = None
    movement: float = 0.0
    seed: int = 1
    batches: int = option(1, "batches that a client measures on in a round")
    estimator: str = option("two-point", "of slopes", choices=("two-point", "forward", "exact"))
    directions: str = "rademacher"
    seed_schedule: str = "shared"
    optimizer: str = "sgd"
    options: Mapping[str, Value] = field(default_factory=dict)
    aggregation: str = "mean"
    max_share: float = 0.5
    fraction_train: float = option(1.0, "of the nodes", at_least=0, at_most=1)
    fraction_evaluate: float = option(1.0, "of the nodes", at_least=0, at_most=1)
    min_train_nodes: int = option(2, "nodes of a round", at_least=0)
    min_evaluate_nodes: int = option(2, "nodes of an evaluation", at_least=0)
    min_available_nodes: int = option(2, "connected nodes", at_least=0)
    weighted_by_key: str = option("num-examples", "metric that weighs a client")
    configrecord_key: str = option("config", "record of the app's settings")
    train_metrics_aggr_fn: AggregateMetrics | None = None
    evaluate_metrics_aggr_fn: AggregateMetrics | None = None
    min_replies: int = 1
    max_skipped_rounds: int = 5
    send_arrays: bool = option(True, "whether a new client is sent the model")
    ledger: str | Path | None = None
    wait_timeout: float = option(3600.0, "for nodes to connect", at_least=0)

    def __post_init__(self) -> None:
        for name, each in options_of(type(self)).items():
            setattr(self, name, each.check(getattr(self, name)))
        if self.ledger is not None and not isinstance(self.ledger, str | Path):
            raise ConfigError(f"ledger: a path or None expected, got {type(self.ledger).__name__}")
        self.config  # noqa: B018  (checks all others)

    @property
    def config(self) -> Config:
        """The configuration of a run with these parameters.

        Raises:
            ConfigError: a parameter has the wrong type, is out of range, or does not fit another.
        """
        rate: dict[str, object] = {"step": "plain", "learning-rate": self.lr}
        if self.lr is None:
            rate = {"step": "normalised", "movement": self.movement}
        return configure({**_check_options(self.options), **rate, **self._settings()})

    def _settings(self) -> dict[str, object]:
        return {
            "mode": "zo",
            "seed": self.seed,
            "dtype": dtype_of(self.model),
            "queries": self.queries,
            "eps": self.eps,
            "estimator": self.estimator,
            "directions": self.directions,
            "seed-schedule": self.seed_schedule,
            "zo-batch-size": int(self.batches > 0),
            "optimizer": self.optimizer,
            "aggregation": self.aggregation,
            "max-share": self.max_share,
            "min-replies": self.min_replies,
            "max-skipped-rounds": self.max_skipped_rounds,
        }


def _check_options(options: Mapping[str, Value]) -> Mapping[str, Value]:
    """Options of components; what the strategy has a parameter for is none.

    Raises:
        ConfigError: not a mapping, or a setting of a run.
    """
    if not isinstance(options, Mapping):
        raise ConfigError(f"options: settings by key expected, got {type(options).__name__}")
    if wrong := sorted(str(key) for key in options if str(key).replace("_", "-") in settings()):
        raise ConfigError(
            f"options: {wrong[0]!r} is no option of a component, such as momentum; if ZerothOrder "
            "has a parameter of its own for it, use that"
        )
    return options
