"""Messages of the rounds that are open: requests to the cohort, replies, resends."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from flwr.app import Message
from flwr.serverapp import Grid

from server.ledger.run_folder import OpenRun
from server.rounds.cohort import Cohort, SiteRecord
from server.rounds.exchange import Exchange
from server.rounds.open_round import LateReplies, OpenRound, ResendPolicy
from server.rounds.replies import RETRIES, Reply, ReplyValidator
from server.rounds.requests import RequestBuilder
from server.rounds.round_log import RoundLog
from shared.base.errors import GapError
from shared.modes.mode import parameters_round
from shared.protocol.messages import Behind

LOG = logging.getLogger("dandelion")


class Messenger:
    """Sends the requests of rounds and gathers their replies; logs all that is sent and comes."""

    def __init__(
        self,
        run: OpenRun,
        cohort: Cohort,
        log: RoundLog,
        requests: RequestBuilder,
        validator: ReplyValidator,
    ) -> None:
        self._run, self._cohort, self._log, self._requests = run, cohort, log, requests
        self._validator = validator
        self.open_rounds: dict[int, OpenRound] = {}  # by round
        self._gathered: dict[int, list[Reply]] = {}  # by round, before its turn
        self._late, self._resend_policy = (
            LateReplies(log),
            ResendPolicy(run.config.federation.resend_after),
        )

    def request_rounds(self, grid: Grid, round_: int) -> None:
        """Send the requests for a round, and with staleness for the next, unless they are sent.

        If numbers are sealed, the requests for the next are sent by ``carry``.
        """
        config = self._run.config
        ahead = 0 if config.privacy.is_sealed else config.federation.staleness
        for each in range(round_, min(round_ + ahead, config.training.rounds) + 1):
            if each in self.open_rounds:
                continue
            if each == round_:
                self._cohort.wait(grid, each)
            else:
                self._cohort.meet(grid, each)
                if len(self._cohort.sites) < config.federation.min_sites:
                    return
            messages = self.open_round(grid, each)
            self._send(self.open_rounds[each], messages)

    def carry(self, grid: Grid, round_: int, riders: Mapping[int, bytes]) -> set[int]:
        """Send the requests for a round before its turn, each with what rides with it.

        Returns:
            The nodes whose riders are on the way. None are without staleness, if the round is open
            already, if it is none of the run, or if too few sites are here.
        """
        federation, rounds = self._run.config.federation, self._run.config.training.rounds
        if not federation.staleness or round_ > rounds or round_ in self.open_rounds:
            return set()
        self._cohort.meet(grid, round_)
        if len(self._cohort.sites) < federation.min_sites:
            return set()
        messages = self.open_round(grid, round_, riders)
        self._send(self.open_rounds[round_], messages)
        return set(riders) & set(self.open_rounds[round_].sites)

    def open_round(
        self, grid: Grid, round_: int, riders: Mapping[int, bytes] | None = None
    ) -> list[Message]:
        """Draw the cohort of a round and make one message for each of its sites."""
        riders = riders or {}
        skips = self._run.ledger.count_skips(round_)
        sites = self._cohort.draw(round_, attempt=skips)
        messages = {
            site.node_id: self._request(
                site, round_, self._position(site, round_), riders.get(site.node_id, b"")
            )
            for site in sites
        }
        reachable = {site.node_id: site for site in sites if messages[site.node_id]}
        self.open_rounds[round_] = OpenRound(round_, Exchange(grid), reachable, riders)
        return [message for each in messages.values() for message in each]

    def gather(self, round_: int) -> list[Reply]:
        """Decode replies as they come; send sites that are behind what they lack."""
        if round_ in self._gathered:
            return self._gathered.pop(round_)
        return self._gather(round_, lambda site, message: None)

    def gather_riders(self, round_: int, take: Callable[[SiteRecord, Message], None]) -> None:
        """Gather a round before its turn, and hand on each site's messages for what they carry."""
        self._gathered[round_] = self._gather(round_, take)

    def _gather(self, round_: int, take: Callable[[SiteRecord, Message], None]) -> list[Reply]:
        self._late.collect()
        open_round = self.open_rounds[round_]
        gathered: list[Reply] = []
        retries: Counter[int] = Counter()
        resends: Counter[int] = Counter()
        timeout, resend = (
            self._run.config.federation.round_timeout,
            partial(self._resend, open_round, resends),
        )
        for message in open_round.exchange.replies(timeout, resend):
            reply = self._receive(message, open_round)
            site, content = reply.site, reply.content
            if site is not None:
                take(site, message)
            if not open_round.exchange.was_awaited(message) and reply.is_behind:
                continue  # the site has a newer request
            if site and isinstance(content, Behind) and retries[site.node_id] < RETRIES:
                retries[site.node_id] += 1
                self._validator.note_behind(site, content, round_)
                self._send_missing(open_round, site)
            else:
                gathered.append(reply)
        self._late.watch(open_round)
        return gathered

    def abandon(self) -> None:
        """Await no replies to open rounds: they are measured at parameters that were undone."""
        for open_round in self.open_rounds.values():
            open_round.exchange.give_up()
            self._late.watch(open_round)
        self.open_rounds.clear()
        self._gathered.clear()

    def collect_late(self) -> None:
        """Log the replies that closed rounds did not get in time."""
        self._late.collect()

    def _position(self, site: SiteRecord, round_: int) -> int | None:
        """The round of a site's replica when the first request for ``round_`` reaches it.

        If the site has an open request for the previous round, it will have replayed up to that
        round's parameters. If it is ahead by at most ``staleness`` rounds, it may already have
        answered this round: it is sent no entries, and says so if it needs some.
        """
        at, before = parameters_round(self._run.config, round_), self.open_rounds.get(round_ - 1)
        if before is not None and site.node_id in before.sites:
            return parameters_round(self._run.config, round_ - 1)
        is_ahead = (
            site.round is not None and at < site.round <= at + self._run.config.federation.staleness
        )
        return at if is_ahead else site.round

    def _request(
        self, site: SiteRecord, round_: int, at: int | None, rider: bytes = b""
    ) -> list[Message]:
        """Make one message; none if the site cannot be brought to where the round is measured.

        That can only happen with staleness, and only until the next snapshot.
        """
        try:
            return [self._requests.message(site, round_, at, rider)]
        except GapError as error:
            name = site.id.name
            LOG.warning("round %d: no request to site %s: %s", round_, name, error)
            self._log.refuse(round_, name, "no way", str(error))
            return []

    def _send(self, open_round: OpenRound, messages: Iterable[Message]) -> None:
        for message in open_round.exchange.send(messages):
            site = open_round.sites[message.metadata.dst_node_id].id.name
            self._log.add_sent(message, open_round.round, site)

    def _receive(self, message: Message, open_round: OpenRound) -> Reply:
        """Count a message, note how long it took, and decode it."""
        self._log.add_received(message, open_round.round, open_round.name_of(message))
        site, seconds = open_round.site_of(message), open_round.exchange.answer_seconds
        if site and not message.has_error() and site.node_id in seconds:
            self._resend_policy.note(site.node_id, seconds[site.node_id])
        return self._validator.open(message, open_round)

    def _send_missing(self, open_round: OpenRound, site: SiteRecord) -> None:
        """Send a site that is behind a new request, with all that it lacks.

        With staleness it also has a request for the next round, which assumes that it is not
        behind. It cannot answer that one, so it gets a new one too.
        """
        rider = open_round.riders.get(site.node_id, b"")
        self._send(open_round, self._request(site, open_round.round, site.round, rider))
        ahead = self.open_rounds.get(open_round.round + 1)
        if ahead is not None and ahead.exchange.supersede(site.node_id):
            at = self._position(site, ahead.round)
            self._send(ahead, self._request(site, ahead.round, at))

    def _resend(self, open_round: OpenRound, resends: Counter[int]) -> None:
        """Send the request again to sites whose answer is overdue; ``resends`` counts."""
        for node_id, seconds in open_round.exchange.seconds_waiting().items():
            if self._resend_policy.is_due(node_id, seconds, resends[node_id]):
                resends[node_id] += 1
                site, round_ = open_round.sites[node_id], open_round.round
                LOG.warning(
                    "round %d: site %s has not answered for %.3g s and is asked again",
                    round_, site.id.name, seconds,
                )  # fmt: skip
                at, rider = self._position(site, round_), open_round.riders.get(node_id, b"")
                self._send(open_round, self._request(site, round_, at, rider))
