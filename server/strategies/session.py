"""One run of a strategy in somebody else's app: its model, its ledger, and rounds that commit."""

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from math import nan
from pathlib import Path
from typing import Any

from server.aggregation.combine import Combiner
from server.aggregation.outliers import find_outliers
from server.aggregation.weights import LimitNotice, weights_of
from server.ledger.ledger import Ledger
from server.ledger.records import Contribution, Metrics
from server.steps.learning_rates import LearningRates
from server.strategies.global_model import GlobalModel
from server.strategies.node_exchange import NodeExchange, NodeReply
from shared.base.errors import StalledError
from shared.base.files import code_digest
from shared.config.schema import Config, to_toml
from shared.protocol.entry import Entry

LOG = logging.getLogger("dandelion")
LEDGER, ABOUT = "ledger.sqlite", "app"  # a file's name, a row of the ledger's header


@dataclass
class AppSession:
    """What a strategy keeps from the first round to the last.

    Invariant: the model's replica is at the ledger's last round between two calls.
    """

    config: Config
    model: GlobalModel
    ledger: Ledger
    exchange: NodeExchange
    folder: Any  # of a ledger that nobody keeps: a TemporaryDirectory, or None
    skipped: int = 0  # rounds in a row
    _since: float = field(default_factory=time.monotonic)

    @classmethod
    def open(
        cls, config: Config, model: GlobalModel, path: Path | None, send_arrays: bool
    ) -> "AppSession":
        """Begin a run.

        Args:
            config: of the run.
            model: at round 0.
            path: of the ledger to be made; None: a temporary file, gone at the end.
            send_arrays: whether new nodes are sent the model, and do not build it themselves.

        Raises:
            LedgerError: there is a ledger at ``path`` already.
        """
        folder = tempfile.TemporaryDirectory(prefix="dandelion-") if path is None else None
        place = Path(folder.name) / LEDGER if folder is not None else Path(path or "")
        header = {
            "run": model.name,
            "config": to_toml(config.to_run_config()).encode(),
            "base": bytes.fromhex(model.about.initial),
            "code": code_digest(),
            ABOUT: model.about.encode().encode(),
        }
        try:
            ledger = Ledger.create(place, header)
        except BaseException:
            if folder is not None:
                folder.cleanup()
            raise
        exchange = NodeExchange(model, ledger, send_arrays)
        return cls(config, model, ledger, exchange, folder)

    def close(self) -> None:
        """Write what is left, and close the ledger."""
        self.ledger.note(*self.exchange.take())
        self.ledger.close()
        if self.folder is not None:
            self.folder.cleanup()

    def commit(
        self, replies: Sequence[NodeReply], most_skips: int
    ) -> tuple[Metrics | None, list[NodeReply]]:
        """Make a round's entry of valid replies, commit it, and take its step.

        Returns:
            What the round did, and the replies that it was made of. None if it was skipped, since
            too few replies are valid; it is then measured again.

        Raises:
            StalledError: ``most_skips`` rounds in a row were skipped.
        """
        round_ = self.ledger.last_round + 1
        contributions = self._without_outliers([_contribution(each) for each in replies])
        needed = self.config.federation.min_replies
        if len(contributions) < needed:
            self._skip(round_, f"{len(contributions)} of {needed} valid replies", most_skips)
            return None, []
        combiner = Combiner(self.config, self.model.flat.replica)
        entry = combiner.entry(round_, 0.0, contributions)
        if entry is None:
            detail = f"aggregation {self.config.federation.aggregation!r} needs more replies"
            self._skip(round_, detail, most_skips)
            return None, []
        entry = replace(entry, learning_rate=self._rates.of_entry(entry, contributions))
        self._limits.say(contributions)
        metrics = self._metrics(entry, combiner, contributions)
        transfers, refusals = self.exchange.take()
        committed = self.ledger.commit(entry, contributions, transfers, metrics, refusals)
        self.model.flat.replica.apply([committed])
        self.ledger.record_digest(round_, self.model.flat.replica.digest())
        self.skipped, self._since = 0, time.monotonic()
        slots = {each.slot for each in contributions}
        return metrics, [each for each in replies if each.sent.site.slot in slots]

    def _metrics(
        self, entry: Entry, combiner: Combiner, contributions: Sequence[Contribution]
    ) -> Metrics:
        weights = weights_of(self.config, contributions)
        losses = [nan if each.loss is None else each.loss for each in contributions]
        return Metrics(
            round=entry.round,
            timestamp=datetime.now(UTC).isoformat(timespec="milliseconds"),
            loss=float(weights @ losses / weights.sum()),
            gradient_norm=combiner.gradient_norm(entry, contributions),
            learning_rate=entry.learning_rate,
            clients=len(contributions),
            forwards=combiner.forwards(entry.round, contributions),
            bytes_up=self.exchange.payload_of("up"),
            bytes_down=self.exchange.payload_of("down"),
            seconds=time.monotonic() - self._since,
        )

    @cached_property
    def _limits(self) -> LimitNotice:
        return LimitNotice(self.config)

    @cached_property
    def _rates(self) -> LearningRates:
        parameters = self.model.flat.replica.model.layout.parameters
        return LearningRates(self.config, self.ledger, parameters)

    def _skip(self, round_: int, detail: str, most: int) -> None:
        LOG.warning("round %d skipped: %s", round_, detail)
        transfers, refusals = self.exchange.take()
        self.ledger.skip(round_, detail, transfers, refusals)
        self.skipped += 1
        if self.skipped >= most:
            last = self.exchange.refusals[-1] if self.exchange.refusals else None
            why = f"; site {last.site}: {last.reason} ({last.detail})" if last else ""
            raise StalledError(
                f"round {round_} was skipped {self.skipped} times in a row: {detail}{why}"
            )

    def _without_outliers(self, contributions: list[Contribution]) -> list[Contribution]:
        """The contributions that are in proportion to each other; the other sites are refused."""
        outliers = find_outliers(self.config, contributions, self.ledger.metrics_of(1))
        for each in outliers:
            self.exchange.refuse(each.site, "out of proportion", each.detail)
        sites = {each.site for each in outliers}
        return [each for each in contributions if each.site not in sites]


def _contribution(reply: NodeReply) -> Contribution:
    measured = reply.measured
    return Contribution(
        round=measured.round,
        slot=reply.sent.site.slot,
        site=reply.sent.site.name,
        examples=measured.examples,
        loss=measured.loss,
        seconds=measured.seconds,
        differences=measured.differences,
    )
