"""A site's part in sealed sums: boxes with shares of its own numbers, and sums of others' shares.

Shares, like rows and noise, are a pseudorandom function of the site's secret and of the whole
request. A repeated request gets the same bytes. They depend on the numbers too: should a machine
ever measure other numbers for the same request, its shares are fresh, and no key is used twice.
"""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from client.privacy.node_policy import NodePolicy, refuse
from client.privacy.noisy_numbers import NoisyNumbers
from client.privacy.site_privacy import SitePrivacy, privacy_folder
from client.sealed.answers import AnswerStore
from client.sealed.identity import SealingIdentity
from shared.base.errors import BudgetError, WireError
from shared.privacy.keystream import KeyStream
from shared.protocol.messages import Request
from shared.protocol.sealed_messages import (
    CohortSite,
    Sealed,
    SumReply,
    SumRequest,
    cohort_digest,
    encode_sum_reply,
)
from shared.protocol.site_id import SiteId
from shared.randomness.streams import Key
from shared.sealed.boxes import BoxPurpose, open_box, seal_box
from shared.sealed.committee import Committee
from shared.sealed.field import PRIME, Elements, to_elements, total
from shared.sealed.shamir import split
from shared.training.oracle import Oracle


@dataclass(frozen=True)
class SealedSite:
    """Seals one site's noisy numbers, and adds up those of a cohort if it is a member."""

    identity: SealingIdentity
    noisy: NoisyNumbers
    answers: AnswerStore

    def measure(self, oracle: Oracle, request: Request, keys: list[Key]) -> Sealed:
        """Measure a secret batch, add noise, pay for it, and seal shares of the result.

        Raises:
            PolicyError: policy, budget or roster do not allow it; nothing has been spent.
            ConfigError: the numbers are too large or too coarse for a sum.
        """
        committee = self.identity.committee(request.run, self.noisy.config)
        name = self.noisy.name(oracle, request)
        steps = self.noisy.measure_steps(oracle, request, keys, name)
        return self.seal(request, oracle.replica.digest(), name, steps, committee)

    def seal(
        self,
        request: Request,
        digest: bytes,
        name: bytes,
        steps: NDArray[np.int64],
        committee: Committee,
    ) -> Sealed:
        """Boxes with shares of grid steps (q,), one for each member."""
        answer = sha256(name + steps.astype("<i8").tobytes()).digest()
        secret, roster = self.noisy.secret, self.identity.roster
        public = KeyStream(secret, "request name", answer).take(32)
        degree, numbers = committee.needed - 1, len(steps)
        stream = KeyStream(secret, "share", answer)
        draws = [stream.below(PRIME) for _ in range(degree * numbers)]
        randomness = np.array(draws, np.uint64).reshape(degree, numbers)
        shares = split(to_elements(steps), randomness, committee.slots)
        own, boxes = self.identity.site.slot, dict[int, bytes]()
        for slot, share in shares.items():
            purpose = BoxPurpose(
                request.run, request.round, request.attempt, committee.needed, numbers, digest,
                roster.digest, own, slot, public,
            )  # fmt: skip
            to = roster.keys[roster.by_slot[slot]]
            boxes[slot] = seal_box(self.identity.key, to, purpose, share)
        return Sealed(
            request.round, request.attempt, committee.needed, numbers, digest, roster.digest,
            public, boxes,
        )  # fmt: skip

    def add_up(self, request: SumRequest) -> SumReply:
        """Add up the shares of each part of a cohort, once for each attempt at a round.

        Raises:
            PolicyError: the site is no member, the cohort is too small or has a stranger, a box
                does not open, or another cohort of this attempt was answered before.
        """
        committee = self.identity.committee(request.run, self.noisy.config)
        if self.identity.site.slot not in committee.slots:
            refuse("committee", f"run {request.run.hex()}: this site is not in its committee")
        self._check_cohort(request)
        shares = [
            self._open(request, committee, site, box)
            for site, box in zip(request.cohort, request.boxes, strict=True)
        ]
        parts = np.array([site.part for site in request.cohort])
        rows = np.vstack(shares)
        sums = np.vstack([total(rows[parts == part]) for part in range(request.parts)])
        return SumReply(request.round, request.attempt, self._note(request), sums)

    def _check_cohort(self, request: SumRequest) -> None:
        """Refuse a sum of too few sites, of strangers, or in other parts than the run's."""
        policy, settings = self.noisy.account.policy, self.noisy.config.privacy
        if request.parts > settings.parts:
            refuse("privacy-parts", f"{settings.parts} parts expected, got {request.parts}")
        for part in range(request.parts):
            count = sum(site.part == part for site in request.cohort)
            if count < policy.min_cohort:
                refuse("min-cohort", f"{policy.min_cohort} sites expected, got {count}")
        known = self.identity.roster.by_slot
        if strangers := [site.slot for site in request.cohort if site.slot not in known]:
            refuse("roster", f"sites of slots {strangers} are not in it")

    def _open(
        self, request: SumRequest, committee: Committee, site: CohortSite, box: bytes
    ) -> Elements:
        roster = self.identity.roster
        purpose = BoxPurpose(
            request.run, request.round, request.attempt, committee.needed, request.numbers,
            request.digest, roster.digest, site.slot, self.identity.site.slot, site.request,
        )  # fmt: skip
        try:
            sender = roster.keys[roster.by_slot[site.slot]]
            return open_box(self.identity.key, sender, purpose, box)
        except WireError as error:
            refuse("sealed-box", str(error))

    def _note(self, request: SumRequest) -> bytes:
        """Note the cohort before its sum leaves; return its digest."""
        cohort = cohort_digest(request.digest, request.cohort)
        about = self.identity.site.name, request.run, request.round, request.attempt
        try:
            is_only = self.answers.note(*about, cohort)
        except BudgetError as error:
            refuse("budget", str(error))
        if not is_only:
            refuse(
                "one-cohort",
                f"round {request.round}, attempt {request.attempt}: another cohort was added up",
            )
        return cohort


def open_sealed(
    site: SiteId, policy: NodePolicy, simulated: int, privacy: SitePrivacy
) -> SealedSite | None:
    """Open what a site needs for sealed sums; None if the run has none.

    Args:
        site: its name and slot.
        policy: of its node.
        simulated: as in ``SealingIdentity.open``.
        privacy: of the run on its data.

    Raises:
        PolicyError: the roster or min-cohort does not allow it, or the file of answers cannot be
            used.
    """
    if not privacy.config.privacy.is_sealed or privacy.noisy is None:
        return None
    identity = SealingIdentity.open(site, privacy.noisy.secret, policy, simulated)
    identity.check_run(privacy.config, policy.min_cohort)
    try:
        return SealedSite(identity, privacy.noisy, AnswerStore(privacy_folder(policy)))
    except BudgetError as error:
        refuse("budget", str(error))


def answer_sum(sealed: SealedSite | None, request: SumRequest) -> bytes:
    """Answer a request for the sums of a cohort, encoded.

    Raises:
        PolicyError: the run seals nothing, or the site does not add up this cohort.
    """
    if sealed is None:
        refuse("committee", "the run has no sealed sums")
    return encode_sum_reply(sealed.add_up(request))
