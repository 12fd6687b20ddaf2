"""The sites that are there: who they are, where their replicas are, and which are asked."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from server.ledger.records import Refusal
from server.rounds.exchange import Exchange, transfer
from shared.base.errors import StalledError, WireError
from shared.config.schema import Config
from shared.protocol.flower_records import Transfer, pack, unpack
from shared.protocol.messages import Hello, decode_hello
from shared.protocol.site_id import SiteId
from shared.randomness.philox import words
from shared.randomness.streams import Key

LOG = logging.getLogger("dandelion")
HELLO_TIMEOUT_S = 120.0  # round-timeout where that is less
ASK_AGAIN_S = 60.0  # a node that was refused may have been mended, or its rival be gone
UNANSWERED_S = 300.0  # the question or its answer may be lost; or the node still builds its model
REFUSALS = 2  # of one node in a row: nothing will come of it by itself
COHORT_ROUND_BITS = 3 << 30  # set in the round word of no direction and no batch


@dataclass
class SiteRecord:
    """What the server knows of one site."""

    id: SiteId
    node_id: int
    hello: Hello
    round: int | None  # where its replica is; None: it has none that can be used


@dataclass(frozen=True)
class Outsider:
    """A node that cannot take part, why, and when it is asked again (``time.monotonic``)."""

    reason: str
    again: float
    times: int = 1  # refused in a row


class Cohort:
    """Keeps the sites by name, whatever node ids Flower gives them, and draws who measures."""

    def __init__(
        self,
        config: Config,
        accept: Callable[[Hello], str],
        run: bytes,
        met: Callable[[Hello], None] = lambda hello: None,
    ) -> None:
        self._config = config
        self._accept = accept  # says why a site cannot take part; empty: it can
        self._met = met  # told of every site that is taken in
        self._run = run
        self.sites: dict[str, SiteRecord] = {}  # by name
        self._slots: dict[int, str] = {}  # the names of those, by slot
        self.outsiders: dict[int, Outsider] = {}  # by node id
        self._exchange: Exchange | None = None
        self.transfers: list[Transfer] = []  # these two: of introductions, since last taken
        self.refusals: list[Refusal] = []

    def meet(self, grid: Grid, round_: int) -> None:
        """Ask nodes that are new, or were refused a while ago, who they are; forget who is gone."""
        present, now = set(grid.get_node_ids()), time.monotonic()
        self.sites = {name: s for name, s in self.sites.items() if s.node_id in present}
        self._slots = {site.id.slot: name for name, site in self.sites.items()}
        self.outsiders = {n: o for n, o in self.outsiders.items() if n in present}
        known = {site.node_id for site in self.sites.values()}
        known |= {n for n, outsider in self.outsiders.items() if now < outsider.again}
        self._ask(grid, sorted(present - known), round_)

    def wait(self, grid: Grid, round_: int) -> None:
        """Return when ``min-sites`` sites are there.

        Raises:
            StalledError: they did not come within ``wait-timeout``, or enough nodes are there and
                were refused again and again.
        """
        start, said = time.monotonic(), -1
        while True:
            self.meet(grid, round_)
            count, needed = len(self.sites), self._config.min_sites
            if count >= needed:
                return
            if count != said:
                LOG.info("waiting for sites: %d of %d are there", count, needed)
                said = count
            waited = time.monotonic() - start
            if waited > self._config.wait_timeout or self._is_hopeless():
                reasons = sorted(outsider.reason for outsider in self.outsiders.values())
                raise StalledError(
                    f"{needed} sites needed for round {round_}, {count} came within "
                    f"{min(waited, self._config.wait_timeout):.3g} s; refused: {reasons}"
                )
            time.sleep(min(1.0, self._config.wait_timeout / 10))

    def _is_hopeless(self) -> bool:
        """Whether enough nodes are there, and all that are missing were refused repeatedly."""
        there = len(self.sites) + len(self.outsiders)
        refused = all(outsider.times >= REFUSALS for outsider in self.outsiders.values())
        return refused and there >= self._config.min_sites

    def draw(self, round_: int, attempt: int) -> list[SiteRecord]:
        """The sites that measure a round, in slot order: a pure function of who is there."""
        sites = sorted(self.sites.values(), key=lambda site: site.id)
        count = self._config.clients_per_round
        if not 0 < count < len(sites):
            return sites
        key = Key(self._config.seed, round_ | COHORT_ROUND_BITS, 0, attempt)
        lots = words(key, range(len(sites)))[:, 0]
        chosen = sorted(range(len(sites)), key=lambda index: (int(lots[index]), index))[:count]
        return [sites[index] for index in sorted(chosen)]

    def _ask(self, grid: Grid, node_ids: list[int], round_: int) -> None:
        """Wait for the nodes that are asked now; those asked earlier may answer when they will.

        Where there are sites enough, nobody waits for a newcomer that builds its model first.
        """
        patient = len(self.sites) < self._config.min_sites
        exchange = self._exchange = self._exchange or Exchange(grid)
        messages = [
            Message(pack(b""), node_id, MessageType.QUERY, group_id=str(round_))
            for node_id in node_ids
        ]
        sent = exchange.send(messages)
        timeout = min(HELLO_TIMEOUT_S, self._config.round_timeout) if patient else 0.0
        names: dict[int | None, str] = {}
        for reply in exchange.replies(timeout):
            node_id, name = exchange.node_of(reply), f"node {reply.metadata.src_node_id}"
            if node_id is not None:
                name = names[node_id] = self._introduce(reply, node_id, round_)
            self.transfers.append(transfer(reply, round_, name, "up"))
        for message in sent:
            node_id = message.metadata.dst_node_id
            name = names.get(node_id, f"node {node_id}")
            self.transfers.append(transfer(message, round_, name, "down"))
            if node_id not in names and patient:
                reason = f"no answer within {timeout:g} s"
                self._refuse(round_, node_id, name, reason, UNANSWERED_S, counts=False)
            elif node_id not in names:
                again = time.monotonic() + UNANSWERED_S
                self.outsiders[node_id] = Outsider("it was asked who it is", again, times=0)

    def _introduce(self, reply: Message, node_id: int, round_: int) -> str:
        """Take a node in or refuse it; return what to call it."""
        hello, reason = _read(reply)
        name = hello.site if hello else f"node {node_id}"
        if hello is None or (reason := self._accept(hello) or self._clash(hello, node_id)):
            self._refuse(round_, node_id, name, reason, ASK_AGAIN_S)
            return name
        at = hello.round if hello.run in ("", self._run.hex()) else None
        self.outsiders.pop(node_id, None)
        self.sites[name] = SiteRecord(SiteId(hello.slot, name), node_id, hello, at)
        self._slots[hello.slot] = name
        self._met(hello)
        LOG.info(
            "site %s is here: %d examples, %s, round %s", name, hello.examples, hello.device, at
        )
        return name

    def _clash(self, hello: Hello, node_id: int) -> str:
        there = self.sites.get(hello.site)
        if there is not None and there.node_id != node_id:
            return f"site {hello.site!r} is here already, as node {there.node_id}"
        if (name := self._slots.get(hello.slot, hello.site)) != hello.site:
            return f"slot {hello.slot} is taken by site {name!r}: rename one of them"
        return ""

    def _refuse(
        self, round_: int, node_id: int, name: str, reason: str, again_s: float, counts: bool = True
    ) -> None:
        LOG.warning("site %s refused: %s", name, reason)
        before = self.outsiders[node_id].times if node_id in self.outsiders else 0
        times = before + 1 if counts else before
        self.outsiders[node_id] = Outsider(reason, time.monotonic() + again_s, times)
        self.refusals.append(Refusal(round_, name, "introduction", reason))


def _read(reply: Message) -> tuple[Hello | None, str]:
    if reply.has_error():
        return None, f"could not introduce itself: {reply.error.reason}"
    try:
        return decode_hello(unpack(reply.content)[0]), ""
    except WireError as error:
        return None, str(error)
