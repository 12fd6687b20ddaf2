"""The protocol as a Flower strategy: ask, validate, combine, commit, and only then apply."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from server.asking import Asking
from server.cohort import Cohort, Site
from server.combining import Combining
from server.exchange import Exchange, transfer
from server.folder import Run
from server.guard import Guard
from server.late import Late
from server.records import Contribution, Metrics, Refusal
from server.validation import Expected, RefusedError, read_reply
from shared.entry import Entry
from shared.errors import StalledError
from shared.modes import plan_of
from shared.traffic import Direction, Transfer
from shared.wire import DIVERGED, Behind

LOG = logging.getLogger("dandelion")
RETRIES = 2  # how often a site that is behind is sent more within one round


class ScalarStrategy(Strategy):
    """Trains by loss differences; the ledger is its memory, a replica its model.

    Invariant: the replica is at the ledger's last round whenever a round begins.
    """

    def __init__(self, run: Run, cohort: Cohort, settle: Callable[[int], None]) -> None:
        self._run, self._cohort, self._settle = run, cohort, settle
        self._asking, self._guard = Asking(run), Guard(run)
        self._combining = Combining(run.config, run.learner.replica)
        self._exchange: Exchange | None = None  # of the current round
        self._asked: dict[int, Site] = {}  # of the current round, by node id
        self._late = Late()
        self._transfers: list[Transfer] = []  # these two: committed with the round
        self._refusals: list[Refusal] = []
        self._started = time.monotonic()

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
            if self._guard.went_back():
                skipped = 0
                self._settle(round_)
                continue
            self._cohort.wait(grid, round_)
            self._started = time.monotonic()
            _, metrics = self.aggregate_train(round_, self._gather(grid, round_))
            skipped = 0 if metrics is not None else skipped + 1
            if skipped >= config.max_skipped_rounds:
                raise StalledError(
                    f"round {round_} was skipped {skipped} times in a row: fewer than "
                    f"{config.min_clients} valid replies; the ledger holds round {round_ - 1}"
                )
        if config.guard_rewinds and (found := self._guard.divergence()) is not None:
            LOG.warning("the run ends where it diverged: %s", found.reason)
        return Result()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """One message for each site of the cohort: what it missed, and the round to measure."""
        skips = self._run.ledger.rows("SELECT 1 FROM skips WHERE round = ?", (server_round,))
        sites = self._cohort.draw(server_round, attempt=len(skips))
        self._asked = {site.node_id: site for site in sites}
        return self._ask(sites, server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Commit and apply the round that the valid replies make; none where they are too few."""
        run, contributions = self._run, self._validated(server_round, replies)
        transfers, refusals = self._noted()
        if len(contributions) < run.config.min_clients:
            detail = f"{len(contributions)} of {run.config.min_clients} valid replies"
            return self._skip(server_round, detail, transfers, refusals)
        rate = 1.0 if run.config.mode == "fedavg" else self._asking.rate(server_round)
        entry = self._combining.entry(server_round, rate, contributions)
        if entry is None:
            return self._skip(server_round, "too few replies of one kind", transfers, refusals)
        metrics = self._metrics(entry, contributions, transfers)
        committed = run.ledger.commit(entry, contributions, transfers, metrics, refusals)
        run.learner.replica.apply([committed])
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
        c, parameters = self._run.config, self._run.learner.replica.model.layout.parameters
        LOG.info("mode %s, %d parameters, aggregation %s", c.mode, parameters, c.aggregation)
        LOG.info("%d directions (%s, %s)", c.queries, c.directions, c.seed_schedule)
        LOG.info("rounds %d to %d", self._run.ledger.last_round + 1, c.num_rounds)

    def _ask(self, sites: Iterable[Site], round_: int) -> list[Message]:
        return [self._asking.message(site, round_) for site in sites]

    def _send(self, exchange: Exchange, messages: list[Message], round_: int) -> None:
        for message in exchange.send(messages):
            site = self._asked[message.metadata.dst_node_id].name.name
            self._transfers.append(transfer(message, round_, site, "down"))

    def _gather(self, grid: Grid, round_: int) -> list[Message]:
        """Ask, send more to sites that are behind, and return the replies to be validated."""
        transfers, refusals = self._late.take()
        self._transfers += transfers
        self._refusals += refusals
        self._exchange = exchange = Exchange(grid)
        messages = self.configure_train(round_, ArrayRecord(), ConfigRecord(), grid)
        self._send(exchange, messages, round_)
        gathered: list[Message] = []
        resent: Counter[int] = Counter()
        for reply in exchange.replies(self._run.config.round_timeout):
            site = self._site_of(reply)
            name = site.name.name if site else _stranger(reply)
            self._transfers.append(transfer(reply, round_, name, "up"))
            if site and resent[site.node_id] < RETRIES and self._is_behind(reply, site, round_):
                resent[site.node_id] += 1
                self._send(exchange, self._ask([site], round_), round_)
            else:
                gathered.append(reply)
        self._late.close(round_, exchange, self._asked)
        return gathered

    def _is_behind(self, message: Message, site: Site, round_: int) -> bool:
        """Whether the reply says that the site needs more before it can measure."""
        try:
            reply = read_reply(message, self._expected(round_, site))
        except RefusedError:
            return False  # refused, and counted, with the round's other replies
        if not isinstance(reply, Behind):
            return False
        site.round = reply.round
        if reply.reason == DIVERGED:
            self._refuse(round_, site.name.name, "diverged", f"at round {reply.round}")
            site.round = None
        return True

    def _validated(self, round_: int, replies: Iterable[Message]) -> list[Contribution]:
        valid: list[Contribution] = []
        silent = {site.name.name: site for site in self._asked.values()}
        for message in replies:
            site = self._site_of(message)
            if site is None:
                self._refuse(round_, _stranger(message), "not asked", "")
                continue
            silent.pop(site.name.name, None)
            try:
                valid.append(self._contribution(message, site, round_))
            except RefusedError as refused:
                site.round = None if refused.reason == "wrong digest" else site.round
                self._refuse(round_, site.name.name, refused.reason, str(refused))
                continue
            site.round = round_ - 1
        for name in silent:
            timeout = self._run.config.round_timeout
            self._refuse(round_, name, "no answer", f"none within {timeout:g} s")
        return self._unique(round_, valid)

    def _unique(self, round_: int, valid: Iterable[Contribution]) -> list[Contribution]:
        """One contribution for each site, in slot order, whatever order they came in."""
        kept: dict[int, Contribution] = {}
        for found in sorted(valid, key=Contribution.order):
            if found.slot in kept:
                self._refuse(round_, found.site, "duplicate", "replied already")
            kept.setdefault(found.slot, found)
        return list(kept.values())

    def _contribution(self, message: Message, site: Site, round_: int) -> Contribution:
        reply = read_reply(message, self._expected(round_, site))
        if isinstance(reply, Behind):
            raise RefusedError("behind", f"still at round {reply.round} after {RETRIES} resends")
        return Contribution(
            round=round_,
            slot=site.name.slot,
            site=site.name.name,
            examples=reply.examples,
            loss=reply.loss,
            seconds=reply.seconds,
            differences=reply.differences,
            gradient=reply.gradient,
        )

    def _expected(self, round_: int, site: Site) -> Expected:
        config, replica = self._run.config, self._run.learner.replica
        plan = plan_of(config, round_, site.hello.can_backpropagate)
        numbers = config.queries * config.local_steps * plan.measure
        return Expected(round_, numbers, replica.digest(), replica.codec if plan.dense else None)

    def _metrics(
        self, entry: Entry, contributions: Sequence[Contribution], transfers: Sequence[Transfer]
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
            bytes_up=self._bytes("up", entry.round, transfers),
            bytes_down=self._bytes("down", entry.round, transfers),
            seconds=time.monotonic() - self._started,
        )

    def _bytes(self, direction: Direction, round_: int, transfers: Iterable[Transfer]) -> int:
        """Payload of a round, attempts that were skipped included."""
        earlier = self._run.ledger.rows(
            "SELECT coalesce(sum(payload), 0) FROM traffic WHERE round = ? AND direction = ?",
            (round_, direction),
        )[0][0]
        return int(earlier) + sum(t.payload for t in transfers if t.direction == direction)

    def _site_of(self, message: Message) -> Site | None:
        node_id = self._exchange.node_of(message) if self._exchange else None
        return None if node_id is None else self._asked.get(node_id)

    def _refuse(self, round_: int, site: str, reason: str, detail: str) -> None:
        LOG.warning("round %d: reply of site %s refused: %s (%s)", round_, site, reason, detail)
        self._refusals.append(Refusal(round_, site, reason, detail))

    def _noted(self) -> tuple[list[Transfer], list[Refusal]]:
        """Bytes and refusals since this was last called."""
        cohort = self._cohort
        transfers, refusals = cohort.transfers + self._transfers, cohort.refusals + self._refusals
        self._transfers, self._refusals, cohort.transfers, cohort.refusals = [], [], [], []
        return transfers, refusals


def _stranger(message: Message) -> str:
    return f"node {message.metadata.src_node_id}"
