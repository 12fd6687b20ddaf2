"""The sites of a federation: who they are, where their replicas are, and which take part."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from server.rounds.exchange import Exchange
from server.rounds.round_log import RoundLog
from shared.base.errors import StalledError, WireError
from shared.base.text import escape_text
from shared.config.schema import Config
from shared.protocol.flower_records import pack, unpack
from shared.protocol.messages import Hello, decode_hello
from shared.protocol.site_id import SiteId
from shared.randomness.philox import words
from shared.randomness.streams import cohort_key

LOG = logging.getLogger("dandelion")
HELLO_TIMEOUT_S = 120.0  # round-timeout if that is less
ASK_AGAIN_S = 60.0  # the cause of a refusal may be gone by then
UNANSWERED_S = 300.0  # a question or answer may be lost; or the node still builds its model
ASKED_AT_ONCE = 500  # nodes
PROGRESS_S = 5.0  # between two lines about setting up
HOPELESS_REFUSALS = 2  # of one node in a row: it will not be accepted without somebody's help


@dataclass
class SiteRecord:
    """What the server knows of one site."""

    id: SiteId
    node_id: int
    hello: Hello
    round: int | None  # of its replica; None: it has no replica of this run


@dataclass(frozen=True)
class ExcludedNode:
    """A node that does not take part, why, and when it is asked again (``time.monotonic``)."""

    reason: str
    again: float
    refusals: int = 1  # in a row


class Cohort:
    """Keeps the sites by name, whatever node ids Flower gives them, and draws who measures."""

    def __init__(
        self,
        config: Config,
        reason_against: Callable[[Hello], str],
        run: bytes,
        log: RoundLog,
        on_meeting: Callable[[Hello], None] = lambda hello: None,
    ) -> None:
        self._config, self._run, self._log = config, run, log
        self._reason_against = reason_against  # why a site cannot take part; empty: it can
        self._on_meeting = on_meeting  # called with every site that is accepted
        self.sites: dict[str, SiteRecord] = {}  # by name
        self._slots: dict[int, str] = {}  # the names of those, by slot
        self.excluded: dict[int, ExcludedNode] = {}  # by node id
        self._left_out: dict[str, str] = {}  # by name: why
        self._names: dict[int, str] = {}  # by node id, also of sites that were refused
        self._exchange: Exchange | None = None

    def meet(self, grid: Grid, round_: int) -> None:
        """Ask nodes that are new, or were refused a while ago, who they are; forget who is gone."""
        present, now = set(grid.get_node_ids()), time.monotonic()
        self.sites = {name: s for name, s in self.sites.items() if s.node_id in present}
        self._slots = {site.id.slot: name for name, site in self.sites.items()}
        self.excluded = {n: node for n, node in self.excluded.items() if n in present}
        known = {site.node_id for site in self.sites.values()}
        known |= {n for n, node in self.excluded.items() if now < node.again}
        self._ask(grid, sorted(present - known), round_)
        self._refuse_other_rosters(round_)

    def _refuse_other_rosters(self, round_: int) -> None:
        """Refuse sites whose roster is not that of most: their numbers have no sum with the others.

        Which roster most have is known once ``min-sites`` sites are there.
        """
        counts = Counter(site.hello.roster for site in self.sites.values())
        if len(counts) < 2 or len(self.sites) < self._config.federation.min_sites:
            return
        most = max(counts, key=lambda roster: (counts[roster], roster))
        for name, site in sorted(self.sites.items()):
            if site.hello.roster != most:
                reason = f"other roster than {counts[most]} of {len(self.sites)} sites have"
                del self.sites[name], self._slots[site.id.slot]
                self._refuse(round_, site.node_id, name, reason, ASK_AGAIN_S)

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Do without some sites from now on; their nodes are not asked again.

        Args:
            reasons: by the site's name.
        """
        self._left_out = dict(reasons)
        for name in self.sites.keys() & reasons.keys():
            site = self.sites.pop(name)
            self.excluded[site.node_id] = ExcludedNode(
                reasons[name], math.inf, refusals=HOPELESS_REFUSALS
            )

    def wait(self, grid: Grid, round_: int) -> None:
        """Return when ``min-sites`` sites are there.

        Raises:
            StalledError: they did not come within ``wait-timeout``, or enough nodes are there and
                were refused again and again.
        """
        start, announced = time.monotonic(), -1
        while True:
            self.meet(grid, round_)
            self._log.write_refusals()
            count, needed = len(self.sites), self._config.federation.min_sites
            if count >= needed:
                return
            if count != announced:
                LOG.info("waiting for sites: %d of %d are there", count, needed)
                announced = count
            seconds = time.monotonic() - start
            if seconds > self._config.federation.wait_timeout or self._is_hopeless():
                reasons = sorted(node.reason for node in self.excluded.values())
                raise StalledError(
                    f"{needed} sites needed for round {round_}, {count} came within "
                    f"{min(seconds, self._config.federation.wait_timeout):.3g} s; "
                    f"refused: {reasons}"
                )
            time.sleep(min(1.0, self._config.federation.wait_timeout / 10))

    def _is_hopeless(self) -> bool:
        """Whether enough nodes are there, and all that are missing were refused repeatedly."""
        there = len(self.sites) + len(self.excluded)
        refused = all(node.refusals >= HOPELESS_REFUSALS for node in self.excluded.values())
        return refused and there >= self._config.federation.min_sites

    def draw(self, round_: int, attempt: int) -> list[SiteRecord]:
        """Draw the sites that measure a round, in slot order: a pure function of who is there."""
        sites = sorted(self.sites.values(), key=lambda site: site.id)
        count = self._config.federation.clients_per_round
        if not 0 < count < len(sites):
            return sites
        key = cohort_key(self._config.training.seed, round_, attempt)
        draws = words(key, range(len(sites)))[:, 0]
        chosen = sorted(range(len(sites)), key=lambda index: (int(draws[index]), index))[:count]
        return [sites[index] for index in sorted(chosen)]

    def _ask(self, grid: Grid, node_ids: list[int], round_: int) -> None:
        """Ask nodes who they are, and take in the answers that have come, to earlier calls too.

        The server waits for answers only while there are too few sites: a newcomer may have to
        build its model first.
        """
        waits = len(self.sites) < self._config.federation.min_sites
        exchange = self._exchange = self._exchange or Exchange(grid)
        messages = [
            Message(pack(b""), node_id, MessageType.QUERY, group_id=str(round_))
            for node_id in node_ids
        ]
        sent = self._send(exchange, messages)
        timeout = min(HELLO_TIMEOUT_S, self._config.federation.round_timeout) if waits else 0.0
        names: dict[int | None, str] = {}
        for reply in exchange.replies(timeout):
            node_id, name = exchange.node_of(reply), self._name(reply.metadata.src_node_id)
            if node_id is not None:
                name = names[node_id] = self._introduce(reply, node_id, round_)
            self._log.add_received(reply, round_, name)
        for message in sent:
            node_id = message.metadata.dst_node_id
            name = names.get(node_id) or self._name(node_id)
            self._log.add_sent(message, round_, name)
            if node_id not in names and waits:
                reason = f"no answer within {timeout:g} s"
                self._refuse(round_, node_id, name, reason, UNANSWERED_S, counts=False)
            elif node_id not in names:
                again = time.monotonic() + UNANSWERED_S
                reason = "it was asked who it is"
                self.excluded[node_id] = ExcludedNode(reason, again, refusals=0)

    def _send(self, exchange: Exchange, messages: Sequence[Message]) -> list[Message]:
        """Send messages in parts, and say now and then how many nodes were asked.

        An engine in this process answers while it is sent to: of many sites, that takes minutes.
        """
        sent, said = list[Message](), time.monotonic()
        for first in range(0, len(messages), ASKED_AT_ONCE):
            sent += exchange.send(messages[first : first + ASKED_AT_ONCE])
            if time.monotonic() - said > PROGRESS_S:
                said = time.monotonic()
                count = min(first + ASKED_AT_ONCE, len(messages))
                LOG.warning("setting up: %s of %s sites", f"{count:,}", f"{len(messages):,}")
        return sent

    def _introduce(self, reply: Message, node_id: int, round_: int) -> str:
        """Accept a node as a site, or refuse it; return its name."""
        hello, reason = _read_hello(reply)
        if hello is not None:
            self._names[node_id] = hello.site
        name = self._name(node_id)
        if hello is not None:
            reason = self._left_out.get(hello.site) or self._reason_against(hello)
            reason = reason or self._find_clash(hello, node_id)
        if hello is None or reason:
            self._refuse(round_, node_id, name, reason, ASK_AGAIN_S)
            return name
        at = hello.round if hello.run in ("", self._run.hex()) else None
        self.excluded.pop(node_id, None)
        self.sites[name] = SiteRecord(SiteId(hello.slot, name), node_id, hello, at)
        self._slots[hello.slot] = name
        self._on_meeting(hello)
        LOG.info(
            "site %s is here: %d examples, %s, round %s", name, hello.examples, hello.device, at
        )
        return name

    def _name(self, node_id: int) -> str:
        """The name by which a node has introduced itself, or its number."""
        return self._names.get(node_id, f"node {node_id}")

    def _find_clash(self, hello: Hello, node_id: int) -> str:
        """Say which other site has the name or the slot; empty: none."""
        same = self.sites.get(hello.site)
        if same is not None and same.node_id != node_id:
            return f"site {hello.site!r} is here already, as node {same.node_id}"
        if (name := self._slots.get(hello.slot, hello.site)) != hello.site:
            return f"slot {hello.slot} is taken by site {name!r}: rename one of them"
        return ""

    def _refuse(
        self, round_: int, node_id: int, name: str, reason: str, again_s: float, counts: bool = True
    ) -> None:
        LOG.warning("site %s refused: %s", escape_text(name), escape_text(reason))
        before = self.excluded[node_id].refusals if node_id in self.excluded else 0
        refusals = before + 1 if counts else before
        self.excluded[node_id] = ExcludedNode(reason, time.monotonic() + again_s, refusals)
        self._log.refuse(round_, name, "introduction", reason)


def _read_hello(reply: Message) -> tuple[Hello | None, str]:
    """Decode an introduction; or say why that cannot be done."""
    if reply.has_error():
        return None, f"could not introduce itself: {reply.error.reason}"
    try:
        return decode_hello(unpack(reply.content)[0]), ""
    except WireError as error:
        return None, str(error)
