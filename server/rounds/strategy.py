"""The protocol as a Flower strategy: ask, validate, combine, commit, and only then apply."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from server.aggregation.combine import Combiner
from server.ledger.records import Contribution, Metrics, Refusal
from server.ledger.run_folder import Run
from server.rounds.after_commit import record_outcomes
from server.rounds.cohort import Cohort, SiteRecord
from server.rounds.divergence_guard import DivergenceGuard
from server.rounds.exchange import Exchange, transfer
from server.rounds.open_round import LateReplies, OpenRound, ResendPolicy
from server.rounds.replies import RETRIES, Judge
from server.rounds.requests import RequestBuilder
from server.rounds.round_log import RoundLog
from shared.base.errors import GapError, StalledError
from shared.modes.mode import measured_at, mode_of
from shared.protocol.entry import Entry
from shared.protocol.flower_records import Transfer, says_behind

LOG = logging.getLogger("dandelion")


class ScalarStrategy(Strategy):
    """Trains by loss differences; the ledger is its memory, a replica its model.

    Invariant: the replica is at the ledger's last round whenever a round begins, unless
    ``server-replica`` is lazy.
    """

    def __init__(self, run: Run, cohort: Cohort, settle: Callable[[int], None]) -> None:
        self._run, self._cohort, self._settle = run, cohort, settle
        self._asking, self._guard = RequestBuilder(run), DivergenceGuard(run)
        self._judge = Judge(run, self._asking)
        self._combining = Combiner(run.config, run.oracle.replica)
        self._open_rounds: dict[int, OpenRound] = {}  # by round, those that are open
        self._late, self._patience = LateReplies(), ResendPolicy(run.config.resend_after)
        self._notes = RoundLog(run, cohort, self._judge, self._late)
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
        self._settle(ledger.last_round)
        while (round_ := ledger.last_round + 1) <= config.num_rounds:
            if self._guard.rewind_if_diverged(self._notes):
                self._forsake()
                skipped = 0
                self._settle(round_)
                continue
            self._launch(grid, round_)
            _, metrics = self.aggregate_train(round_, self._gather(round_))
            skipped = 0 if metrics is not None else skipped + 1
            if skipped >= config.max_skipped_rounds:
                raise StalledError(
                    f"round {round_} was skipped {skipped} times in a row: fewer than "
                    f"{config.min_replies} valid replies; the ledger holds round {round_ - 1}"
                )
        self._guard.warn()
        self._notes.write_rest()
        return Result()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """One message for each site of the cohort: what it missed, and the round to measure."""
        skips = self._run.ledger.rows("SELECT 1 FROM skips WHERE round = ?", (server_round,))
        sites = self._cohort.draw(server_round, attempt=len(skips))
        found = {
            site.node_id: self._request(site, server_round, self._before(site, server_round))
            for site in sites
        }
        asked = {site.node_id: site for site in sites if found[site.node_id]}
        self._open_rounds[server_round] = OpenRound(server_round, Exchange(grid), asked)
        return [message for messages in found.values() for message in messages]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Commit and apply the round that the valid replies make; none where they are too few."""
        run, open_round = self._run, self._open_rounds.pop(server_round)
        contributions = self._judge.accept(open_round, replies)
        transfers, refusals = self._notes.until(server_round)
        if len(contributions) < run.config.min_replies:
            detail = f"{len(contributions)} of {run.config.min_replies} valid replies"
            return self._skip(server_round, detail, transfers, refusals)
        rate = 1.0 if mode_of(run.config).averages_parameters else self._asking.rate(server_round)
        entry = self._combining.entry(server_round, rate, contributions)
        if entry is None:
            return self._skip(server_round, "too few replies of one kind", transfers, refusals)
        metrics = self._metrics(entry, contributions, transfers, open_round.since)
        record_outcomes(run.ledger, measured_at(run.config, server_round), contributions)
        if (claim := self._judge.claim) is not None:
            run.ledger.record_digest(*claim)
        committed = run.ledger.commit(entry, contributions, transfers, metrics, refusals)
        if run.config.server_replica == "eager":
            run.oracle.replica.apply([committed])
        elif committed.guide:
            run.catch_up()
        self._committed = time.monotonic()
        self._settle(server_round)
        return None, MetricRecord({"loss": metrics.loss})

    def _skip(
        self, round_: int, detail: str, transfers: list[Transfer], refusals: list[Refusal]
    ) -> tuple[None, None]:
        LOG.warning("round %d skipped: %s", round_, detail)
        self._run.ledger.skip(round_, detail, transfers, refusals)
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No messages: the server evaluates, its parameters are every site's."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing: no site was asked."""
        return None

    def summary(self) -> None:
        """Say what is about to run."""
        c, parameters = self._run.config, self._run.oracle.replica.model.layout.parameters
        LOG.info("mode %s, %d parameters, aggregation %s", c.mode, parameters, c.aggregation)
        LOG.info("%d directions (%s, %s)", c.queries, c.directions, c.seed_schedule)
        LOG.info("rounds %d to %d", self._run.ledger.last_round + 1, c.num_rounds)

    def _launch(self, grid: Grid, round_: int) -> None:
        """Ask for a round, and with staleness for the next one, where that was not done yet."""
        config = self._run.config
        for each in range(round_, min(round_ + config.staleness, config.num_rounds) + 1):
            if each in self._open_rounds:
                continue
            if each == round_:
                self._cohort.wait(grid, each)
            else:
                self._cohort.meet(grid, each)
                if len(self._cohort.sites) < config.min_sites:
                    return
            messages = self.configure_train(each, ArrayRecord(), ConfigRecord(), grid)
            self._send(self._open_rounds[each], messages)

    def _forsake(self) -> None:
        """Await nothing of the rounds that are open: they were measured where the run is not."""
        for open_round in self._open_rounds.values():
            open_round.exchange.give_up()
            self._late.close(open_round)
        self._open_rounds.clear()

    def _before(self, site: SiteRecord, round_: int) -> int | None:
        """Where a site's replica is when the first request for a round reaches it.

        One that is asked for the round before gets there first. One that is further than this round
        needs, no more than staleness explains, may have answered it; it will say.
        """
        at, last = measured_at(self._run.config, round_), self._open_rounds.get(round_ - 1)
        if last is not None and site.node_id in last.asked:
            return measured_at(self._run.config, round_ - 1)
        ahead = site.round is not None and at < site.round <= at + self._run.config.staleness
        return at if ahead else site.round

    def _request(self, site: SiteRecord, round_: int, at: int | None) -> list[Message]:
        """One message; none where no way leads the site to where the round is measured.

        That can only be with staleness, and only until the next snapshot.
        """
        try:
            return [self._asking.message(site, round_, at)]
        except GapError as error:
            name = site.id.name
            LOG.warning("round %d: site %s is not asked: %s", round_, name, error)
            self._judge.refusals.append(Refusal(round_, name, "no way", str(error)))
            return []

    def _resend(self, open_round: OpenRound, site: SiteRecord) -> None:
        """Send a site that is behind all that it lacks.

        With staleness it was asked for the next round as well, as if it were not behind: it cannot
        answer that, and is asked anew.
        """
        self._send(open_round, self._request(site, open_round.round, site.round))
        ahead = self._open_rounds.get(open_round.round + 1)
        if ahead is not None and ahead.exchange.supersede(site.node_id):
            at = self._before(site, ahead.round)
            self._send(ahead, self._request(site, ahead.round, at))

    def _send(self, open_round: OpenRound, messages: Iterable[Message]) -> None:
        for message in open_round.exchange.send(messages):
            site = open_round.asked[message.metadata.dst_node_id].id.name
            self._notes.transfers.append(transfer(message, open_round.round, site, "down"))

    def _gather(self, round_: int) -> list[Message]:
        """Send more to sites that are behind; return the replies that are to be validated."""
        self._notes.take_late()
        open_round = self._open_rounds[round_]
        gathered: list[Message] = []
        resent: Counter[int] = Counter()
        again: Counter[int] = Counter()
        timeout, lost = self._run.config.round_timeout, partial(self._ask_again, open_round, again)
        for reply in open_round.exchange.replies(timeout, lost):
            site, judge = open_round.site_of(reply), self._judge
            self._notes.transfers.append(transfer(reply, round_, open_round.name_of(reply), "up"))
            if site and not reply.has_error() and site.node_id in open_round.exchange.took:
                self._patience.note(site.node_id, open_round.exchange.took[site.node_id])
            if not open_round.exchange.was_awaited(reply) and says_behind(reply):
                continue  # it was asked again since
            if site and resent[site.node_id] < RETRIES and judge.is_behind(reply, site, round_):
                resent[site.node_id] += 1
                self._resend(open_round, site)
            else:
                gathered.append(reply)
        self._late.close(open_round)
        return gathered

    def _ask_again(self, open_round: OpenRound, again: Counter[int]) -> None:
        """Send the request once more to sites whose answer is overdue; ``again`` counts."""
        for node_id, seconds in open_round.exchange.waiting().items():
            if self._patience.is_over(node_id, seconds, again[node_id]):
                again[node_id] += 1
                site, round_ = open_round.asked[node_id], open_round.round
                LOG.warning(
                    "round %d: site %s has not answered for %.3g s and is asked again",
                    round_, site.id.name, seconds,
                )  # fmt: skip
                self._send(open_round, self._request(site, round_, self._before(site, round_)))

    def _metrics(
        self,
        entry: Entry,
        contributions: Sequence[Contribution],
        transfers: Sequence[Transfer],
        since: float,
    ) -> Metrics:
        examples = sum(x.examples for x in contributions)
        return Metrics(
            round=entry.round,
            timestamp=datetime.now(UTC).isoformat(timespec="milliseconds"),
            loss=sum(x.loss * x.examples for x in contributions) / examples,
            gradient_norm=self._combining.gradient_norm(entry, contributions),
            learning_rate=self._asking.rate(entry.round),
            clients=len(contributions),
            forwards=self._combining.forwards(entry.round, contributions),
            bytes_up=self._notes.payload("up", entry.round, transfers),
            bytes_down=self._notes.payload("down", entry.round, transfers),
            seconds=time.monotonic() - max(since, self._committed),
        )
