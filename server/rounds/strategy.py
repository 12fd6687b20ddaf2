"""The protocol as a Flower strategy: request, accept, combine, commit, and only then apply."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from server.aggregation.combine import Combiner, GradientError
from server.aggregation.outliers import find_outliers, measure_lengths
from server.aggregation.weights import LimitNotice, weights_of
from server.ledger.records import Contribution, Metrics, Refusal, SumRow
from server.ledger.run_folder import OpenRun
from server.rounds.after_commit import record_outcomes
from server.rounds.cohort import Cohort
from server.rounds.divergence_guard import DivergenceGuard
from server.rounds.messenger import Messenger
from server.rounds.open_round import OpenRound
from server.rounds.replies import Reply, ReplyValidator, agree_on_digest
from server.rounds.requests import RequestBuilder
from server.rounds.round_log import RoundLog
from server.rounds.sums import NoSumError, SumCollector
from server.steps.learning_rates import LearningRates, is_by_rule
from shared.base.errors import StalledError
from shared.modes.estimators import estimator_of
from shared.modes.mode import parameters_round
from shared.modes.step_rule import PLAIN, step_rule_of, why_plain
from shared.protocol.entry import Entry
from shared.protocol.transfers import Transfer

LOG = logging.getLogger("dandelion")

FEW_OF_KIND = "too few replies of one kind"  # gradients, or numbers


@dataclass(frozen=True)
class MadeRound:
    """An entry, and what it was made of."""

    entry: Entry
    contributions: list[Contribution]  # the sites'
    numbers: list[Contribution]  # the vectors that were aggregated: theirs, or opened sums
    sums: Sequence[SumRow] = ()  # of a sealed round


class ScalarStrategy(Strategy):
    """Trains by loss differences; the ledger is its memory, a replica its model.

    Invariant: the replica is at the ledger's last round whenever a round begins, unless
    ``server-replica`` is lazy.
    """

    def __init__(
        self, run: OpenRun, cohort: Cohort, log: RoundLog, after_commit: Callable[[int], None]
    ) -> None:
        self._run, self._log, self._after_commit = run, log, after_commit
        parameters = run.oracle.replica.model.layout.parameters
        self._rates = LearningRates(run.config, run.ledger, parameters)
        self._guard, self._cohort = DivergenceGuard(run), cohort
        self._requests = RequestBuilder(run, self._rates)
        self._validator = ReplyValidator(run, self._requests, log)
        self._messenger = Messenger(run, cohort, log, self._requests, self._validator)
        self._combiner = Combiner(run.config, run.oracle.replica)
        self._limits = LimitNotice(run.config)
        self._sums = SumCollector(run, cohort, log, self._validator, self._messenger)
        self._committed = 0.0  # when the last round was (``time.monotonic``)

    def start(  # noqa: PLR0913, PLR0917  (Flower's signature)
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 0,
        timeout: float = 0,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Commit rounds until there are ``num-rounds``; the arguments but ``grid`` are not used.

        Raises:
            StalledError: too few sites came, too many rounds in a row were skipped, or the run
                diverged too often.
        """
        config, ledger, skipped = self._run.config, self._run.ledger, 0
        self.summary()
        self._cohort.leave_out(ledger.exclusions())
        self._after_commit(ledger.last_round)
        while (round_ := ledger.last_round + 1) <= config.training.rounds:
            if self._guard.rewind_if_diverged(self._log):
                self._messenger.abandon()
                self._cohort.leave_out(ledger.exclusions())
                skipped = 0
                self._after_commit(round_)
                continue
            self._messenger.request_rounds(grid, round_)
            metrics = self._close_round(round_, self._messenger.gather(round_))
            skipped = 0 if metrics is not None else skipped + 1
            if skipped >= config.federation.max_skipped_rounds:
                raise StalledError(
                    f"round {round_} was skipped {skipped} times in a row: fewer than "
                    f"{config.federation.min_replies} valid replies; "
                    f"the ledger holds round {round_ - 1}{self._last_refusal()}"
                )
        self._guard.warn()
        self._messenger.collect_late()
        self._log.write_rest(config.training.rounds)
        return Result()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Make one message for each site: the entries that it missed, and the round to measure."""
        return self._messenger.open_round(grid, server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decode replies and commit the round of them; nothing if too few are valid."""
        open_round = self._messenger.open_rounds[server_round]
        opened = [self._validator.open(message, open_round) for message in replies]
        metrics = self._close_round(server_round, opened)
        return None, None if metrics is None else MetricRecord({"loss": metrics.loss or 0.0})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make no messages: the server evaluates, its parameters are those of every site."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return nothing: no site was requested to evaluate."""
        return None

    def summary(self) -> None:
        """Log what is about to run."""
        c, parameters = self._run.config, self._run.oracle.replica.model.layout.parameters
        LOG.info(
            "mode %s, %d parameters, aggregation %s",
            c.training.mode,
            parameters,
            c.federation.aggregation,
        )
        LOG.info("%d directions (%s, %s)", c.zo.queries, c.zo.directions, c.zo.seed_schedule)
        rule = step_rule_of(c)
        plain = f": {why_plain(c)}" if c.optimizer.step == "auto" and rule == PLAIN else ""
        LOG.info("estimator %s, step %s%s", estimator_of(c), rule, plain)
        LOG.info("rounds %d to %d", self._run.ledger.last_round + 1, c.training.rounds)

    def _close_round(self, round_: int, replies: Sequence[Reply]) -> Metrics | None:
        """Commit and apply the entry of the valid replies; None if they are too few."""
        run, open_round = self._run, self._messenger.open_rounds.pop(round_)
        consensus = agree_on_digest(run, round_, replies)
        digest = consensus[1] if consensus else self._requests.digest(round_)
        accepted = self._validator.accept(open_round, replies, digest)
        made = self._combine(open_round, accepted)
        transfers, refusals = self._log.until(round_)
        if isinstance(made, str):
            self._skip(round_, made, transfers, refusals)
            return None
        entry, contributions = made.entry, made.contributions
        self._limits.say(contributions)
        metrics = self._metrics(made, transfers, open_round.since)
        record_outcomes(run.ledger, parameters_round(run.config, round_), contributions)
        if consensus is not None:
            run.ledger.record_digest(*consensus)
        committed = run.ledger.commit(
            entry, contributions, transfers, metrics, refusals, sums=made.sums
        )
        if run.config.run.server_replica == "eager":
            run.oracle.replica.apply([committed])
        elif committed.guide:
            run.catch_up()
        self._committed = time.monotonic()
        self._after_commit(round_)
        return metrics

    def _combine(self, open_round: OpenRound, accepted: list[Contribution]) -> "MadeRound | str":
        """Make the entry of valid replies; or say why they give none.

        A gradient is decoded here for the first time: if that fails, its site is refused, and so is
        one whose numbers are out of all proportion; the entry is made of the others.
        """
        if self._run.config.privacy.is_sealed:
            return self._combine_sealed(open_round, accepted)
        round_, needed = open_round.round, self._run.config.federation.min_replies
        contributions = accepted
        while len(contributions) >= needed:
            try:
                contributions = self._without_outliers(round_, contributions)
                if len(contributions) < needed:
                    break
                entry = self._entry(round_, contributions)
                return MadeRound(entry, contributions, contributions) if entry else FEW_OF_KIND
            except GradientError as error:
                self._validator.refuse(round_, error.site, "bad gradient", str(error))
                contributions = [each for each in contributions if each.site != error.site]
        return f"{len(contributions)} of {needed} valid replies"

    def _combine_sealed(
        self, open_round: OpenRound, accepted: list[Contribution]
    ) -> "MadeRound | str":
        """The same of sealed replies: a committee adds them up first."""
        try:
            sealed = self._sums.collect(open_round, accepted)
        except NoSumError as error:
            return str(error)
        entry = self._entry(open_round.round, sealed.pooled)
        if entry is None:
            return FEW_OF_KIND
        return MadeRound(entry, sealed.contributions, sealed.pooled, sealed.sums)

    def _entry(self, round_: int, contributions: list[Contribution]) -> Entry | None:
        """Combine the replies, and give the step the rate that follows from its numbers."""
        entry = self._combiner.entry(round_, 0.0, contributions)
        if entry is None:
            return None
        return replace(entry, learning_rate=self._rates.of_entry(entry, contributions))

    def _rate_shown(self, entry: Entry) -> float:
        """The rate in a round's metrics: that of the sites' steps, if parameters are averaged."""
        by_rule = is_by_rule(self._run.config)
        return entry.learning_rate if by_rule else self._rates.at(entry.round)

    def _without_outliers(
        self, round_: int, contributions: list[Contribution]
    ) -> list[Contribution]:
        """The contributions that are in proportion to each other; the other sites are refused.

        Raises:
            GradientError: a site's gradient cannot be decoded.
        """
        config, first = self._run.config, self._run.ledger.metrics_of(1)
        contributions = measure_lengths(config, contributions, self._combiner.decode)
        outliers = find_outliers(config, contributions, first)
        details = {each.site: each.detail for each in outliers}
        for site, detail in details.items():
            self._validator.refuse(round_, site, "out of proportion", detail)
        return [each for each in contributions if each.site not in details]

    def _last_refusal(self) -> str:
        """The reason of the newest refusal, in words for the end of an error."""
        if not (refusals := self._run.ledger.refusals()):
            return ""
        last = refusals[-1]
        return f"; the last reply of site {last.site} was refused: {last.reason} ({last.detail})"

    def _skip(
        self, round_: int, detail: str, transfers: list[Transfer], refusals: list[Refusal]
    ) -> None:
        LOG.warning("round %d skipped: %s", round_, detail)
        self._run.ledger.skip(round_, detail, transfers, refusals)

    def _metrics(self, made: "MadeRound", transfers: Sequence[Transfer], since: float) -> Metrics:
        entry, contributions = made.entry, made.contributions
        weights = weights_of(self._run.config, contributions).tolist()
        losses = [(x.loss or 0.0) * w for x, w in zip(contributions, weights, strict=True)]
        is_sent = all(each.loss is not None for each in contributions)
        return Metrics(
            round=entry.round,
            timestamp=datetime.now(UTC).isoformat(timespec="milliseconds"),
            loss=sum(losses) / sum(weights) if is_sent else None,
            gradient_norm=self._combiner.gradient_norm(entry, made.numbers),
            learning_rate=self._rate_shown(entry),
            clients=len(contributions),
            forwards=self._combiner.forwards(entry.round, contributions),
            bytes_up=self._log.payload("up", entry.round, transfers),
            bytes_down=self._log.payload("down", entry.round, transfers),
            seconds=time.monotonic() - max(since, self._committed),
        )
