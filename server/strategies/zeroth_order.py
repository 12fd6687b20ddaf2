"""Zeroth-order training as a strategy for anybody's ServerApp: clients send scalars, not models."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from server.ledger.records import Metrics, Refusal
from server.strategies.global_model import GlobalModel
from server.strategies.node_exchange import NodeReply
from server.strategies.round_trip import RoundTrip
from server.strategies.sampling import EVALUATE, TRAIN, Sampling
from server.strategies.session import AppSession
from server.strategies.strategy_parameters import AggregateMetrics, StrategyParameters
from shared.base.errors import ConfigError

LOG = logging.getLogger("dandelion")
EvaluateGlobally = Callable[[int, ArrayRecord], MetricRecord | None]
SERVER_ROUND = "server-round"


@dataclass(kw_only=True, eq=False)
class ZerothOrder(StrategyParameters, Strategy):
    """Trains a module by loss differences along random directions (SPSA, Spall 1992).

    A client sends q numbers L(θ+εz) − L(θ−εz) a round, whatever the size of the model, and computes
    no gradient. It is sent the numbers of the rounds that it missed, from which it computes the
    server's parameters bit for bit; every reply proves by a digest that it did. The ClientApp has
    ``dandelion.zeroth_order_handler``, and ``zeroth_order_mod`` if clients evaluate.

    Trained are the parameters with ``requires_grad``. Buffers, such as the statistics of a batch
    normalisation, stay as the initial arrays say.

    Args:
        model: the module whose ``state_dict`` the initial arrays are. It is copied, not changed.
        queries: q, directions of a round. A client computes 2q losses, or fewer (``estimator``).
        eps: smoothing radius ε, how far along a direction a client steps.
        lr: learning rate η of θ ← θ − η · (1/q) Σ (difference / 2ε) z. None: the rate is chosen
            each round so that a parameter moves ``movement`` (root mean square); needs ``sgd``.
        movement: of a parameter in a round, if ``lr`` is None; 0: by the number of parameters.
        seed: names all directions and draws of the run.
        batches: of a client's data on which it measures in a round; 0: all that the data gives.
        estimator: ``two-point`` differences; ``forward`` ones, of q + 1 losses; ``exact``: slopes
            from one backward pass, for clients that can backpropagate.
        directions: the family: ``rademacher``, ``hadamard`` (for few parameters), ``lowrank``,
            ``gaussian`` (its bits differ between kinds of devices).
        seed_schedule: whether all clients measure the same directions (``shared``), or each its own
            (``independent``: less variance, but the entries grow with the clients).
        optimizer: ``sgd``, ``adam``, …; ``options`` has its own settings, by the keys that
            ``dandelion settings`` shows: ``{"momentum": 0.9}``.
        options: of the components that are named here.
        aggregation: ``mean``, ``median``, ``trimmed-mean``, ``krum``, …, of shared directions.
        max_share: the most that one client may weigh under ``mean``.
        fraction_train, fraction_evaluate, min_train_nodes, min_evaluate_nodes, min_available_nodes,
            weighted_by_key, configrecord_key, train_metrics_aggr_fn, evaluate_metrics_aggr_fn: as
            in Flower's ``FedAvg``.
        min_replies: valid replies without which a round is measured again.
        max_skipped_rounds: in a row, after which the run stops.
        send_arrays: False: every client builds the same initial model itself, and is sent only its
            digest. A client whose model differs is sent the arrays.
        ledger: path of a file that is made: every entry, reply, refusal and byte of the run, for
            ``dandelion.rebuild_from_ledger``. None: not kept.
        wait_timeout: seconds for which ``min_available_nodes`` are waited for.

    Raises:
        ConfigError: a value has the wrong type, is out of range, or does not fit another.

    Example:
        >>> from torch import nn
        >>> strategy = ZerothOrder(model=nn.Linear(4, 3), queries=8, lr=0.1)
        >>> strategy.queries, strategy.eps
        (8, 0.001)
    """

    _session: AppSession | None = field(default=None, init=False, repr=False)
    _trip: RoundTrip | None = field(default=None, init=False, repr=False)
    _timeout: float = field(default=3600.0, init=False, repr=False)
    _refusals: list[Refusal] = field(default_factory=list, init=False, repr=False)

    @property
    def refusals(self) -> list[Refusal]:
        """Replies that were not used: round, site, reason and detail of each, of the last run."""
        return list(self._refusals)

    def start(  # noqa: PLR0913, PLR0917  (Flower's signature)
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateGlobally | None = None,
    ) -> Result:
        """Train for some rounds; the arguments and the result are those of Flower's strategies.

        Args:
            grid: of the ServerApp.
            initial_arrays: ``ArrayRecord(model.state_dict())``: where to start from.
            num_rounds: rounds to be tried; one with too few valid replies changes nothing.
            timeout: seconds after which a client that has not replied is left out of a round.
            train_config: for the clients' train messages, with "server-round" added.
            evaluate_config: the same for evaluate messages.
            evaluate_fn: of the round and the arrays; called before the first round and after each.

        Returns:
            Final arrays; by round, the clients' train metrics with ``gradient-norm``,
            ``learning-rate``, ``clients``, ``bytes-up`` and ``bytes-down`` (of Flower's messages)
            of the round, the clients' evaluate metrics, and those of ``evaluate_fn``.

        Raises:
            ConfigError: the arrays are not those of the model, or an argument is out of range.
            LedgerError: there is a file at ``ledger`` already.
            StalledError: too few nodes came, or ``max_skipped_rounds`` in a row had too few valid
                replies; the message has the last refusal.
        """
        if type(num_rounds) is not int or num_rounds < 0:
            raise ConfigError(f"num_rounds: an integer of at least 0 expected, got {num_rounds!r}")
        if not timeout > 0:
            raise ConfigError(f"timeout: more than 0 seconds expected, got {timeout!r}")
        self._timeout = timeout
        self._open(initial_arrays)
        try:
            result = super().start(
                grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config,
                evaluate_fn,
            )  # fmt: skip
        finally:
            self.close()
        if not result.arrays:
            result.arrays = initial_arrays
        return result

    def close(self) -> None:
        """Close the ledger; ``start`` does it. For a loop of one's own, at its end."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def summary(self) -> None:
        """Log what is about to run."""
        rate = f"learning rate {self.lr:g}" if self.lr is not None else "rate by the slopes"
        LOG.info(
            "zeroth-order: %d %s directions (%s, %s), eps %g, %s, %s",
            self.queries, self.directions, self.seed_schedule, self.estimator, self.eps,
            self.optimizer, rate,
        )  # fmt: skip
        LOG.info(
            "a share of %g of the nodes trains, %g evaluates; aggregation %s",
            self.fraction_train, self.fraction_evaluate, self.aggregation,
        )  # fmt: skip

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make one message for each node that is drawn: what it missed, and the round to measure.

        In round 1 ``arrays`` are where to start from; later they must be what
        ``aggregate_train`` returned last.

        Raises:
            ConfigError: other arrays.
            StalledError: too few nodes came.
        """
        if self._session is None or (server_round == 1 and self._session.ledger.last_round):
            self.close()
            self._open(arrays)
        nodes = Sampling(self.fraction_train, self.min_train_nodes, self.min_available_nodes)
        drawn = nodes.draw(grid, self.seed, server_round, TRAIN, self.wait_timeout)
        return self._request(drawn, MessageType.TRAIN, server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Commit the round of the valid replies and take its step; (None, None) if too few are.

        Raises:
            StalledError: the last of ``max_skipped_rounds`` rounds in a row.
        """
        session, trip = self._open_session(), self._trip
        if trip is None or not trip.messages:
            return None, None
        try:
            valid = trip.read(replies, self.queries, self.weighted_by_key, self._timeout)
            up, down = session.exchange.bytes_of("up"), session.exchange.bytes_of("down")
            metrics, used = session.commit(valid, self.max_skipped_rounds)
        finally:
            self._refusals = list(session.exchange.refusals)
        if metrics is None:
            return None, None
        record = self._average(self.train_metrics_aggr_fn, used)
        for name, value in _facts(metrics, up, down).items():
            record.setdefault(name, value)
        return session.model.arrays(), record

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make one message for each node that is drawn: what it missed, to evaluate after it.

        Raises:
            ConfigError: ``arrays`` are not those of the last round.
            StalledError: too few nodes came.
        """
        if self._session is None:
            self._open(arrays)
        nodes = Sampling(self.fraction_evaluate, self.min_evaluate_nodes, self.min_available_nodes)
        drawn = nodes.draw(grid, self.seed, server_round, EVALUATE, self.wait_timeout)
        return self._request(drawn, MessageType.EVALUATE, server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The mean of the clients' metrics, weighted by examples; None if no reply is valid."""
        session, trip = self._open_session(), self._trip
        if trip is None or not trip.messages:
            return None
        valid = trip.read(replies, 0, self.weighted_by_key, self._timeout)
        session.ledger.note(*session.exchange.take())
        self._refusals = list(session.exchange.refusals)
        return self._average(self.evaluate_metrics_aggr_fn, valid) if valid else None

    def _request(
        self,
        nodes: list[int],
        kind: str,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> list[Message]:
        session = self._open_session()
        session.model.check_same(arrays)
        settings = ConfigRecord({**config, SERVER_ROUND: server_round})
        self._trip = RoundTrip.to(
            session.exchange, nodes, kind, grid, self.configrecord_key, settings
        )
        return self._trip.messages

    def _average(self, given: AggregateMetrics | None, replies: list[NodeReply]) -> MetricRecord:
        """Average the metrics of valid replies as Flower's FedAvg does, or as the user does."""
        average = given or FedAvg().train_metrics_aggr_fn
        return average([each.message.content for each in replies], self.weighted_by_key)

    def _open(self, arrays: ArrayRecord) -> None:
        model = GlobalModel.of(self.model, arrays, self.config, self.batches, self.weighted_by_key)
        path = None if self.ledger is None else Path(self.ledger)
        self._session = AppSession.open(self.config, model, path, self.send_arrays)
        self._refusals, self._trip = [], None

    def _open_session(self) -> AppSession:
        if self._session is None:
            raise ConfigError("no run is open: configure_train of round 1 opens it, as start does")
        return self._session


def _facts(metrics: Metrics, up: int, down: int) -> dict[str, float | int]:
    """What the strategy itself says of a round, by the names in a ``Result``."""
    return {
        "gradient-norm": metrics.gradient_norm,
        "learning-rate": metrics.learning_rate,
        "clients": metrics.clients,
        "bytes-up": up,
        "bytes-down": down,
    }
