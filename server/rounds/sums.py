"""The second step of a sealed round: a committee adds up, and its sums are opened.

With ``staleness = 1`` the requests for the sums ride with those for the next round, and the sums
with its replies, so that a round is one message to each site and back. Members that the next round
does not ask, or whose sums are still needed after it, are asked alone.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from flwr.app import Message, MessageType

from server.ledger.records import Contribution, SumRow
from server.ledger.run_folder import OpenRun
from server.rounds.cohort import Cohort, SiteRecord
from server.rounds.exchange import Exchange
from server.rounds.messenger import Messenger
from server.rounds.open_round import OpenRound
from server.rounds.replies import ReplyValidator
from server.rounds.round_log import RoundLog
from server.sealed.cohorts import SealedCohort, agree_on_committee, divide, go_on
from server.sealed.sums import find_wrong_form, open_sums, pool
from shared.base.errors import WireError
from shared.protocol.flower_records import pack, rider_of, unpack
from shared.protocol.sealed_messages import (
    SumReply,
    cohort_digest,
    decode_sum_answer,
    encode_sum_request,
)

PATIENCE_S, PATIENCE = 1.0, 2.0  # for the members that are not needed: seconds, times the others'


class NoSumError(WireError):
    """An attempt at a sealed round gives no sum; the message says why."""


@dataclass(frozen=True)
class SealedRound:
    """What an attempt gave: the sites whose numbers are in it, and the numbers of each part."""

    contributions: list[Contribution]  # without numbers
    pooled: list[Contribution]  # one for each part
    sums: list[SumRow]


class SumCollector:
    """Commits cohorts and collects the sums of their members."""

    def __init__(
        self,
        run: OpenRun,
        cohort: Cohort,
        log: RoundLog,
        validator: ReplyValidator,
        messenger: Messenger,
    ) -> None:
        self._run, self._cohort, self._log, self._validator = run, cohort, log, validator
        self._messenger = messenger

    def collect(self, open_round: OpenRound, replies: Sequence[Contribution]) -> SealedRound:
        """Add up the sealed numbers of valid replies, which are in slot order.

        Raises:
            NoSumError: too few sites or members, or sums that do not agree.
        """
        round_, config = open_round.round, self._run.config
        attempt = self._run.ledger.count_skips(round_)
        cohort = self._commit_cohort(round_, attempt, replies)
        rows = self._request_sums(Exchange(open_round.exchange.grid), cohort)
        if len(rows) < cohort.needed:
            raise NoSumError(f"{len(rows)} of {cohort.needed} members added up")
        try:
            opened = open_sums(rows, len(cohort.sizes))
        except WireError as error:
            raise NoSumError(str(error)) from error
        for slot in opened.liars:
            detail = f"other sums than those of {len(rows) - len(opened.liars)} members"
            self._validator.refuse(round_, self._name(slot), "wrong sum", detail)
        inside = {row.slot for row in cohort.rows}
        contributions = [each for each in replies if each.slot in inside]
        return SealedRound(contributions, pool(config, cohort.rows, opened.steps), rows)

    def _commit_cohort(
        self, round_: int, attempt: int, replies: Sequence[Contribution]
    ) -> SealedCohort:
        """Write down whose numbers are added up, or take what was written before a restart."""
        config, ledger = self._run.config, self._run.ledger
        if rows := ledger.cohort_rows(round_, attempt):
            cohort = go_on(rows, replies)
            if isinstance(cohort, str):
                raise NoSumError(cohort)
            return cohort
        chosen, others = agree_on_committee(replies)
        for each in others:
            detail = f"another committee than that of {len(chosen)} sites: rosters differ"
            self._validator.refuse(round_, each.site, "other roster", detail)
        fewest = max(config.federation.min_replies, config.privacy.parts)
        if len(chosen) < fewest:
            raise NoSumError(f"{len(chosen)} of {fewest} valid replies")
        cohort = divide(round_, attempt, config.privacy.parts, chosen)
        ledger.commit_cohort(cohort.rows)
        return cohort

    def _request_sums(self, exchange: Exchange, cohort: SealedCohort) -> list[SumRow]:
        """Ask the members for their sums; wait for those that are needed, and a bit for others."""
        asking = AskedCommittee(exchange, cohort, self._members(cohort), self._run)
        if len(asking.members) < cohort.needed:
            return []
        following = cohort.round + 1
        carried = self._messenger.carry(exchange.grid, following, asking.riders())
        self._send(asking, asking.members.keys() - carried)
        if carried:
            self._messenger.gather_riders(following, partial(self._take_rider, asking))
            self._send(asking, asking.still_needed(carried))
        timeout = self._run.config.federation.round_timeout
        for message in exchange.replies(timeout, lambda: self._send(asking, asking.overdue())):
            self._receive(message, asking)
        return [asking.rows[slot] for slot in sorted(asking.rows)]

    def _send(self, asking: "AskedCommittee", nodes: Iterable[int]) -> None:
        for message in asking.exchange.send([asking.message(node) for node in sorted(nodes)]):
            name = asking.members[message.metadata.dst_node_id].id.name
            self._log.add_sent(message, asking.cohort.round, name)

    def _receive(self, message: Message, asking: "AskedCommittee") -> None:
        """Count a reply, and keep its sums if they can be some."""
        round_, node = asking.cohort.round, asking.exchange.node_of(message)
        site = None if node is None else asking.members.get(node)
        name = site.id.name if site else f"node {message.metadata.src_node_id}"
        self._log.add_received(message, round_, name)
        if site is None:
            self._validator.refuse(round_, name, "not asked", "no member of the committee")
        elif message.has_error():
            self._validator.refuse(round_, name, "error", message.error.reason or "")
        else:
            self._take(asking, site, lambda: unpack(message.content)[0])

    def _take_rider(self, asking: "AskedCommittee", site: SiteRecord, message: Message) -> None:
        """Keep the sums that came with a site's reply to the next round, if it is a member."""
        rider = b"" if message.has_error() else rider_of(message.content)
        if rider and site.node_id in asking.members and site.node_id not in asking.answered:
            self._take(asking, site, lambda: rider)

    def _take(
        self, asking: "AskedCommittee", site: SiteRecord, payload: Callable[[], bytes]
    ) -> None:
        """Keep a member's sums, or count why there are none."""
        round_, name = asking.cohort.round, site.id.name
        asking.answered.add(site.node_id)
        try:
            answer = decode_sum_answer(payload())
            if isinstance(answer, str):
                self._validator.refuse(round_, name, "error", answer)
            else:
                asking.take(site.id.slot, answer)
        except WireError as error:
            self._validator.refuse(round_, name, "wrong sum", str(error))

    def _members(self, cohort: SealedCohort) -> dict[int, SiteRecord]:
        """The members that are here, by node id; the others are counted as missing."""
        here = {site.id.slot: site for site in self._cohort.sites.values()}
        for slot in cohort.members:
            if slot not in here:
                detail = "a member of the committee that is not here"
                self._validator.refuse(cohort.round, f"slot {slot}", "no sum", detail)
        return {here[slot].node_id: here[slot] for slot in cohort.members if slot in here}

    def _name(self, slot: int) -> str:
        names = {site.id.slot: name for name, site in self._cohort.sites.items()}
        return names.get(slot, f"slot {slot}")


@dataclass
class AskedCommittee:
    """The members that were asked for their sums of one cohort, and those that have come."""

    exchange: Exchange
    cohort: SealedCohort
    members: Mapping[int, SiteRecord]  # by node id
    run: OpenRun
    rows: dict[int, SumRow] = field(default_factory=dict)  # by slot
    answered: set[int] = field(default_factory=set)  # nodes that have sent sums, or refused to
    _start: float = field(default_factory=time.monotonic)
    _until: float = math.inf  # when those that are not needed are given up
    _resends: Counter[int] = field(default_factory=Counter)

    def riders(self) -> dict[int, bytes]:
        """The request to each member, by node, encoded."""
        return {node: self._encode(node) for node in self.members}

    def still_needed(self, nodes: Iterable[int]) -> list[int]:
        """Those of some nodes that are asked again: they were silent, and sums are missing."""
        if len(self.rows) >= self.cohort.needed:
            return []
        return [node for node in nodes if node not in self.answered]

    def _encode(self, node: int) -> bytes:
        slot = self.members[node].id.slot
        return encode_sum_request(self.cohort.request(slot, self.run.name, self.run.code))

    def message(self, node: int) -> Message:
        """The request to a member, alone."""
        return Message(
            content=pack(self._encode(node)),
            dst_node_id=node,
            message_type=MessageType.TRAIN,
            group_id=str(self.cohort.round),
            ttl=self.run.config.federation.round_timeout,
        )

    def take(self, slot: int, reply: SumReply) -> None:
        """Keep a member's sums.

        Raises:
            WireError: they are of another cohort, or of another form.
        """
        cohort = self.cohort
        if reply.cohort != cohort_digest(cohort.replies[0].digest, cohort.sites):
            raise WireError("sums of another cohort")
        numbers = cohort.replies[0].numbers
        if fault := find_wrong_form(reply.sums, len(cohort.sizes), numbers):
            raise WireError(fault)
        values = reply.sums.astype("<u8").tobytes()
        self.rows[slot] = SumRow(cohort.round, cohort.attempt, slot, cohort.needed, values)
        if len(self.rows) == cohort.needed:
            now = time.monotonic()
            self._until = now + max(PATIENCE_S, PATIENCE * (now - self._start))

    def overdue(self) -> list[int]:
        """The nodes that are asked again now; nobody is waited for once patience is over."""
        if time.monotonic() > self._until:
            self.exchange.give_up()
        least = self.run.config.federation.resend_after
        waiting = self.exchange.seconds_waiting().items()
        due = [n for n, seconds in waiting if least and seconds > least * (1 << self._resends[n])]
        self._resends.update(due)
        return due
