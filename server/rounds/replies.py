"""A reply is decoded once and checked field by field before it may enter a round."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Message

from server.ledger.records import Contribution, Refusal
from server.ledger.run_folder import OpenRun
from server.rounds.cohort import SiteRecord
from server.rounds.open_round import OpenRound
from server.rounds.requests import RequestBuilder
from server.rounds.round_log import RoundLog
from server.sealed.cohorts import contribution_of, find_fault
from shared.base.errors import DandelionError, WireError
from shared.base.text import escape_text
from shared.config.privacy_section import MOST_MEMBERS
from shared.modes.mode import parameters_round, plan_of
from shared.modes.step_rule import compares
from shared.protocol.flower_records import unpack
from shared.protocol.messages import DIVERGED, Behind, Measured, decode_reply
from shared.protocol.outcomes import is_sound, outcome_bytes
from shared.protocol.sealed_messages import Sealed, box_bytes

LOG = logging.getLogger("dandelion")
LARGEST_LOSS = 1e9  # no loss is larger; sums and squares of numbers up to it stay finite
RETRIES = 2  # how often a site that is behind is sent more within one round


class RefusedError(DandelionError):
    """A reply that is not used; ``reason`` is one of a few words that are counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Reply:
    """An answer to a round's request, decoded."""

    sender: str  # name of the site, or of a node that the round was not requested of
    site: SiteRecord | None  # None: such a node
    content: Measured | Behind | Sealed | Refusal  # Refusal: an error, oversized or undecodable

    @property
    def is_behind(self) -> bool:
        """Whether the site says that it needs more before it can measure."""
        return self.site is not None and isinstance(self.content, Behind)


@dataclass(frozen=True)
class Expected:
    """What a valid reply to a round's request has."""

    round: int
    numbers: int  # K * q
    gradient_bytes: int | None = None  # the most of a gradient; None: the round asks for none
    classes: int | None = None  # of the outcome that the round asks for; None: it asks for none
    before: bool = False  # whether it holds the loss of the batch of the step that comes next
    after: bool = False  # whether it holds that of the step that was taken last
    loss: bool = True  # whether it holds the loss of the site's batch
    examples: int | None = None  # as many as the site introduced itself with; None: any
    evaluated: int | None = None  # the most examples of the outcome; None: any number
    scores: tuple[str, ...] = ()  # of the outcome, beside its loss and its classes
    attempt: int | None = None  # at a round whose numbers are sealed; None: they are in the open

    @property
    def most_bytes(self) -> int:
        """No valid reply is longer."""
        outcome = 0 if self.classes is None else outcome_bytes(self.classes, self.scores)
        if self.attempt is not None:
            return 128 + MOST_MEMBERS * (4 + box_bytes(self.numbers))
        return 64 + 4 * self.numbers + (self.gradient_bytes or 0) + outcome


def decode_message(message: Message, most_bytes: int) -> Measured | Behind | Sealed:
    """Decode the reply in a message; nothing of it is checked but its length and checksum.

    Raises:
        RefusedError: it is an error, longer than ``most_bytes``, or cannot be decoded.
    """
    if message.has_error():
        raise RefusedError("error", message.error.reason or f"code {message.error.code}")
    try:
        payload, snapshot = unpack(message.content)
        if len(payload) > most_bytes:
            detail = f"at most {most_bytes} bytes expected, got {len(payload)}"
            raise RefusedError("oversized", detail)
        if snapshot is not None:
            detail = f"no second record expected, got one of {len(snapshot)} bytes"
            raise RefusedError("oversized", detail)
        return decode_reply(payload)
    except WireError as error:
        raise RefusedError("undecodable", str(error)) from error


def check_reply(reply: Measured | Sealed, expected: Expected, digest: bytes | None) -> None:
    """Check all fields of a reply but its gradient's bytes, which are checked when decoded.

    ``digest`` names the parameters that the round is measured at; None: any are accepted.

    Raises:
        RefusedError: of another round, of the wrong length, not finite or too large, measured at
            other parameters, measured on nothing, or without what the round asks for.
    """
    if isinstance(reply, Sealed) != (expected.attempt is not None):
        raise RefusedError("wrong kind", f"sealed numbers: {expected.attempt is not None} expected")
    if isinstance(reply, Sealed):
        about = expected.round, expected.attempt or 0, expected.numbers
        if fault := find_fault(reply, *about, digest):
            raise RefusedError(*fault)
        return
    _check_numbers(reply, expected)
    if digest is not None and reply.digest != digest:
        raise RefusedError("wrong digest", f"{digest.hex()} expected, got {reply.digest.hex()}")
    if reply.examples < 1 or not 0 <= reply.seconds < math.inf:
        raise RefusedError("no examples", f"{reply.examples} examples in {reply.seconds} s")
    if expected.examples not in (None, reply.examples):
        detail = f"{expected.examples} expected, as introduced, got {reply.examples}"
        raise RefusedError("other examples", detail)
    if bool(reply.gradient) != (expected.gradient_bytes is not None):
        wanted = "no gradient" if expected.gradient_bytes is None else "a gradient"
        raise RefusedError("wrong kind", f"{wanted} expected, got {len(reply.gradient)} bytes")
    _check_outcome(reply, expected)


def _check_numbers(reply: Measured, expected: Expected) -> None:
    if reply.round != expected.round:
        raise RefusedError("wrong round", f"round {expected.round} expected, got {reply.round}")
    if len(reply.differences) != expected.numbers:
        raise RefusedError(
            "wrong length", f"{expected.numbers} numbers expected, got {len(reply.differences)}"
        )
    if (reply.before is not None, reply.after is not None) != (expected.before, expected.after):
        wanted = f"losses before {expected.before}, after {expected.after} expected"
        raise RefusedError("wrong kind", f"{wanted}, got {reply.before} and {reply.after}")
    if reply.loss is None and expected.loss:
        raise RefusedError("not finite", f"{reply.differences}, loss {math.nan}")
    if reply.loss is not None and not expected.loss:
        raise RefusedError("wrong kind", f"no loss expected, got {reply.loss}")
    losses = [abs(x) for x in (reply.loss, reply.before, reply.after) if x is not None]
    peak = float(np.abs(reply.differences).max(initial=0.0))  # not finite if one number is not
    if not all(map(math.isfinite, (peak, *losses))):
        raise RefusedError("not finite", f"{reply.differences}, loss {reply.loss}")
    if (most := max([peak, *losses])) > LARGEST_LOSS:
        raise RefusedError("too large", f"up to {LARGEST_LOSS:g} expected, got {most}")


def _check_outcome(reply: Measured, expected: Expected) -> None:
    outcome = reply.outcome
    if (outcome is None) != (expected.classes is None):
        wanted = "no outcome" if expected.classes is None else "an outcome"
        raise RefusedError("wrong kind", f"{wanted} expected, got {outcome}")
    if outcome is None:
        return
    sound = is_sound(outcome, LARGEST_LOSS) and {*outcome.sums} == {*expected.scores}
    if outcome.classes != expected.classes or not sound:
        wanted = f"of {expected.classes} classes and scores {[*expected.scores]} expected"
        raise RefusedError("bad outcome", f"{wanted}, got {outcome}")
    if expected.evaluated is not None and outcome.examples > expected.evaluated:
        detail = f"of at most {expected.evaluated} examples expected, got {outcome.examples}"
        raise RefusedError("bad outcome", detail)


def agree_on_digest(
    run: OpenRun, round_: int, replies: Iterable[Reply]
) -> tuple[int, bytes] | None:
    """Return the round that replies were measured at, and the one digest that they all carry.

    With ``server-replica = lazy`` the server does not know the digest of the parameters that a
    round is measured at. The digest that all replies agree on is recorded before anything rests on
    it, and compared when a replica is brought there (``follow_``, ``ledger verify``). If replies
    differ, the server catches up at once and checks them as if it had never been behind.

    Returns None if the replica is at that round, also after it has caught up.

    Raises:
        DivergedError: earlier rounds were measured at other parameters than the ledger gives.
    """
    at = parameters_round(run.config, round_)
    if run.config.run.server_replica == "eager" or run.oracle.replica.round == at:
        return None
    contents = (reply.content for reply in replies if reply.site is not None)
    digests = {c.digest for c in contents if isinstance(c, Measured | Sealed)}
    if len(digests) > 1:
        run.catch_up()
        return None
    return (at, digests.pop()) if digests else None


class ReplyValidator:
    """Trusts nothing that a site sends, and keeps track of where the sites' replicas are."""

    def __init__(self, run: OpenRun, requests: RequestBuilder, log: RoundLog) -> None:
        self._run, self._requests, self._log = run, requests, log

    def open(self, message: Message, open_round: OpenRound) -> Reply:
        """Decode a message; if that fails, the reply's content is the refusal."""
        round_, name = open_round.round, open_round.name_of(message)
        site = open_round.site_of(message)
        if site is None:
            return Reply(name, None, Refusal(round_, name, "not asked", ""))
        try:
            most = self._expect(round_, site).most_bytes
            return Reply(name, site, decode_message(message, most))
        except RefusedError as refused:
            return Reply(name, site, Refusal(round_, name, refused.reason, str(refused)))

    def note_behind(self, site: SiteRecord, behind: Behind, round_: int) -> None:
        """Note where a site that is behind says its replica is; nowhere if it has diverged."""
        site.round = behind.round
        if behind.reason == DIVERGED:
            self.refuse(round_, site.id.name, "diverged", f"at round {behind.round}")
            site.round = None

    def accept(
        self, open_round: OpenRound, replies: Iterable[Reply], digest: bytes | None
    ) -> list[Contribution]:
        """Return one contribution for each site whose reply can be used, in slot order.

        All others are refused, silent sites too. ``digest``: as in ``check_reply``.
        """
        round_, valid = open_round.round, list[Contribution]()
        silent = {site.id.name for site in open_round.sites.values()}
        for reply in replies:
            if reply.site is not None:
                silent.discard(reply.sender)
            try:
                valid.append(self._contribution(reply, round_, digest))
            except RefusedError as refused:
                if reply.site is not None and refused.reason == "wrong digest":
                    reply.site.round = None
                self.refuse(round_, reply.sender, refused.reason, str(refused))
        for name in (site.id.name for site in open_round.sites.values()):
            if name in silent:
                timeout = self._run.config.federation.round_timeout
                self.refuse(round_, name, "no answer", f"none within {timeout:g} s")
        return self._drop_copies(round_, valid)

    def refuse(self, round_: int, site: str, reason: str, detail: str) -> None:
        """Warn of a reply that is not used, and count it."""
        name, why = escape_text(site), escape_text(detail)
        LOG.warning("round %d: reply of site %s refused: %s (%s)", round_, name, reason, why)
        self._log.refuse(round_, site, reason, detail)

    def _contribution(self, reply: Reply, round_: int, digest: bytes | None) -> Contribution:
        content, site = reply.content, reply.site
        if isinstance(content, Refusal):
            raise RefusedError(content.reason, content.detail)
        if isinstance(content, Behind) or site is None:
            raise RefusedError("behind", f"still at round {content.round} after {RETRIES} resends")
        expected = self._expect(round_, site)
        check_reply(content, expected, digest)
        site.round = parameters_round(self._run.config, round_)
        if isinstance(content, Sealed):
            return contribution_of(site.id, content, site.hello.examples)
        return Contribution(
            round=round_,
            slot=site.id.slot,
            site=site.id.name,
            examples=content.examples,
            loss=content.loss,
            seconds=content.seconds,
            differences=content.differences,
            gradient=content.gradient,
            outcome=content.outcome,
            before=content.before,
            after=content.after,
            can_backpropagate=site.hello.can_backpropagate,
        )

    def _drop_copies(self, round_: int, valid: Sequence[Contribution]) -> list[Contribution]:
        """Return one contribution for each site, in slot order, whatever order they came in."""
        unique: dict[int, Contribution] = {}
        for each in sorted(valid, key=Contribution.order):
            if each.slot in unique:
                self.refuse(round_, each.site, "duplicate", "replied already")
            unique.setdefault(each.slot, each)
        return list(unique.values())

    def _expect(self, round_: int, site: SiteRecord) -> Expected:
        config, oracle = self._run.config, self._run.oracle
        plan = plan_of(config, round_, site.hello.can_backpropagate)
        numbers = config.zo.queries * config.training.local_steps * plan.measure
        gradient_bytes = oracle.replica.codec.payload_bytes if plan.dense else None
        classes = oracle.task.classes if self._requests.evaluates(round_) else None
        before = plan.measure and compares(config)
        after = before and self._requests.compares(round_, site.id.slot)
        return Expected(
            round_, numbers, gradient_bytes, classes, before, after,
            loss=config.privacy.sends_loss,
            examples=site.hello.examples,
            evaluated=config.evaluation.blocks,
            scores=getattr(oracle.task, "score_names", ()) if classes is not None else (),
            attempt=self._run.ledger.count_skips(round_) if config.privacy.is_sealed else None,
        )  # fmt: skip
