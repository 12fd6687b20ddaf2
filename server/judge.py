"""Replies are judged: which go into a round, which are refused and why, who needs more first."""

import logging
from collections.abc import Iterable

from flwr.app import Message

from server.asking import Asking
from server.claims import agreed
from server.cohort import Site
from server.flight import Flight
from server.folder import Run
from server.records import Contribution, Refusal
from server.validation import Expected, RefusedError, read_reply
from shared.envelope import says_behind
from shared.modes import measured_at, plan_of
from shared.wire import DIVERGED, Behind

LOG = logging.getLogger("dandelion")
RETRIES = 2  # how often a site that is behind is sent more within one round


class Judge:
    """Believes nothing that a site sends; keeps what it knows of the sites' replicas true."""

    def __init__(self, run: Run, asking: Asking) -> None:
        self._run, self._asking = run, asking
        self.refusals: list[Refusal] = []  # since they were last taken
        self.claim: tuple[int, bytes] | None = None  # a round, and the digest that sites agree on

    def is_behind(self, message: Message, site: Site, round_: int) -> bool:
        """Whether the reply says that the site needs more before it can measure."""
        if not says_behind(message):
            return False
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

    def validated(self, flight: Flight, replies: Iterable[Message]) -> list[Contribution]:
        """One contribution for each site whose reply can be used, in slot order."""
        valid: list[Contribution] = []
        round_, silent = flight.round, {site.name.name: site for site in flight.asked.values()}
        gathered = list(replies)
        self.claim = agreed(self._run, flight, gathered)
        for message in gathered:
            site = flight.site_of(message)
            if site is None:
                self._refuse(round_, flight.name_of(message), "not asked", "")
                continue
            silent.pop(site.name.name, None)
            try:
                valid.append(self._contribution(message, site, round_))
            except RefusedError as refused:
                site.round = None if refused.reason == "wrong digest" else site.round
                self._refuse(round_, site.name.name, refused.reason, str(refused))
                continue
            site.round = measured_at(self._run.config, round_)
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
            outcome=reply.outcome,
        )

    def _expected(self, round_: int, site: Site) -> Expected:
        config, replica = self._run.config, self._run.learner.replica
        plan = plan_of(config, round_, site.hello.can_backpropagate)
        numbers = config.queries * config.local_steps * plan.measure
        digest = self._asking.digest(round_)
        if self.claim is not None and self.claim[0] == measured_at(config, round_):
            digest = self.claim[1]
        codec = replica.codec if plan.dense else None
        classes = self._run.learner.task.classes if self._asking.evaluates(round_) else None
        return Expected(round_, numbers, digest, codec, classes)

    def _refuse(self, round_: int, site: str, reason: str, detail: str) -> None:
        LOG.warning("round %d: reply of site %s refused: %s (%s)", round_, site, reason, detail)
        self.refusals.append(Refusal(round_, site, reason, detail))
