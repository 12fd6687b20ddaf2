"""A site's reply is checked field by field before it may enter a round; a refusal has a reason."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from flwr.app import Message

from server.ledger.records import Contribution, Refusal
from server.ledger.run_folder import Run
from server.rounds.cohort import SiteRecord
from server.rounds.digest_consensus import agree_on_digest
from server.rounds.open_round import OpenRound
from server.rounds.requests import RequestBuilder
from shared.base.errors import DandelionError, WireError
from shared.codecs import Codec
from shared.modes.mode import measured_at, plan_of
from shared.protocol.flower_records import says_behind, unpack
from shared.protocol.messages import DIVERGED, OUTCOME, Behind, Measured, decode_reply

LARGEST = 1e9  # no loss is larger; sums and squares of numbers up to it stay finite


class RefusedError(DandelionError):
    """A reply that is not used; ``reason`` is one of a few words that are counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Expected:
    """What a valid reply to a round's request looks like."""

    round: int
    numbers: int  # K * q
    digest: bytes | None  # 16, of the parameters that the round is measured at; None: any
    codec: Codec | None = None  # of the gradient that the round asks for
    classes: int | None = None  # of the outcome that the round asks for; None: it asks for none


def read_reply(message: Message, expected: Expected) -> Measured | Behind:
    """The reply in a message, checked.

    Raises:
        RefusedError: an error, undecodable, oversized, of another round, of the wrong length, not
            finite or too large, measured at other parameters, or measured on nothing.
    """
    if message.has_error():
        raise RefusedError("error", message.error.reason or f"code {message.error.code}")
    try:
        payload, snapshot = unpack(message.content)
        limit = 64 + 4 * expected.numbers
        limit += expected.codec.payload_bytes if expected.codec else 0
        limit += OUTCOME.size + 4 * expected.classes**2 if expected.classes is not None else 0
        if len(payload) > limit or snapshot is not None:
            raise RefusedError("oversized", f"at most {limit} bytes expected, got {len(payload)}")
        reply = decode_reply(payload)
    except WireError as error:
        raise RefusedError("undecodable", str(error)) from error
    if isinstance(reply, Measured):
        _check(reply, expected)
        _check_gradient(reply, expected)
        _check_outcome(reply, expected)
    return reply


def _check(reply: Measured, expected: Expected) -> None:
    if reply.round != expected.round:
        raise RefusedError("wrong round", f"round {expected.round} expected, got {reply.round}")
    if len(reply.differences) != expected.numbers:
        raise RefusedError(
            "wrong length", f"{expected.numbers} numbers expected, got {len(reply.differences)}"
        )
    peak = float(np.abs(reply.differences).max(initial=0.0))  # not finite where one number is not
    if not (math.isfinite(peak) and math.isfinite(reply.loss)):
        raise RefusedError("not finite", f"{reply.differences}, loss {reply.loss}")
    if (most := max(peak, abs(reply.loss))) > LARGEST:
        raise RefusedError("too large", f"up to {LARGEST:g} expected, got {most}")
    if expected.digest is not None and reply.digest != expected.digest:
        raise RefusedError(
            "wrong digest", f"{expected.digest.hex()} expected, got {reply.digest.hex()}"
        )
    if reply.examples < 1 or not 0 <= reply.seconds < math.inf:
        raise RefusedError("no examples", f"{reply.examples} examples in {reply.seconds} s")


def _check_outcome(reply: Measured, expected: Expected) -> None:
    outcome = reply.outcome
    if (outcome is None) != (expected.classes is None):
        wanted = "no outcome" if expected.classes is None else "an outcome"
        raise RefusedError("wrong kind", f"{wanted} expected, got {outcome}")
    if outcome is None:
        return
    told = int(outcome.confusion.sum()) if outcome.classes else outcome.examples
    whole = 0 <= outcome.total <= LARGEST * outcome.examples and outcome.examples == told > 0
    if outcome.classes != expected.classes or not whole:
        raise RefusedError("bad outcome", f"of {expected.classes} classes expected, got {outcome}")


def _check_gradient(reply: Measured, expected: Expected) -> None:
    if bool(reply.gradient) != (expected.codec is not None):
        wanted = "no gradient" if expected.codec is None else "a gradient"
        raise RefusedError("wrong kind", f"{wanted} expected, got {len(reply.gradient)} bytes")
    if expected.codec is None:
        return
    try:
        expected.codec.decode(reply.gradient)
    except WireError as error:
        raise RefusedError("bad gradient", str(error)) from error


LOG = logging.getLogger("dandelion")
RETRIES = 2  # how often a site that is behind is sent more within one round


class Judge:
    """Believes nothing that a site sends; keeps what it knows of the sites' replicas true."""

    def __init__(self, run: Run, asking: RequestBuilder) -> None:
        self._run, self._asking = run, asking
        self.refusals: list[Refusal] = []  # since they were last taken
        self.claim: tuple[int, bytes] | None = None  # a round, and the digest that sites agree on

    def is_behind(self, message: Message, site: SiteRecord, round_: int) -> bool:
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
            self._refuse(round_, site.id.name, "diverged", f"at round {reply.round}")
            site.round = None
        return True

    def accept(self, open_round: OpenRound, replies: Iterable[Message]) -> list[Contribution]:
        """One contribution for each site whose reply can be used, in slot order."""
        valid: list[Contribution] = []
        round_, silent = (
            open_round.round,
            {site.id.name: site for site in open_round.asked.values()},
        )
        gathered = list(replies)
        self.claim = agree_on_digest(self._run, open_round, gathered)
        for message in gathered:
            site = open_round.site_of(message)
            if site is None:
                self._refuse(round_, open_round.name_of(message), "not asked", "")
                continue
            silent.pop(site.id.name, None)
            try:
                valid.append(self._contribution(message, site, round_))
            except RefusedError as refused:
                site.round = None if refused.reason == "wrong digest" else site.round
                self._refuse(round_, site.id.name, refused.reason, str(refused))
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

    def _contribution(self, message: Message, site: SiteRecord, round_: int) -> Contribution:
        reply = read_reply(message, self._expected(round_, site))
        if isinstance(reply, Behind):
            raise RefusedError("behind", f"still at round {reply.round} after {RETRIES} resends")
        return Contribution(
            round=round_,
            slot=site.id.slot,
            site=site.id.name,
            examples=reply.examples,
            loss=reply.loss,
            seconds=reply.seconds,
            differences=reply.differences,
            gradient=reply.gradient,
            outcome=reply.outcome,
        )

    def _expected(self, round_: int, site: SiteRecord) -> Expected:
        config, replica = self._run.config, self._run.oracle.replica
        plan = plan_of(config, round_, site.hello.can_backpropagate)
        numbers = config.queries * config.local_steps * plan.measure
        digest = self._asking.digest(round_)
        if self.claim is not None and self.claim[0] == measured_at(config, round_):
            digest = self.claim[1]
        codec = replica.codec if plan.dense else None
        classes = self._run.oracle.task.classes if self._asking.evaluates(round_) else None
        return Expected(round_, numbers, digest, codec, classes)

    def _refuse(self, round_: int, site: str, reason: str, detail: str) -> None:
        LOG.warning("round %d: reply of site %s refused: %s (%s)", round_, site, reason, detail)
        self.refusals.append(Refusal(round_, site, reason, detail))
