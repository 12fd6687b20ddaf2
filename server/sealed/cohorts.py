"""Which sealed replies make one sum: a cohort that agrees on its committee, in parts.

A cohort is written down before its sums are asked for, and then it is the only one of its attempt.
A server that was killed in between asks the sites again, gets the same bytes, and goes on with it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from server.ledger.records import CohortRow, Contribution
from shared.protocol.sealed_messages import CohortSite, Sealed, SumRequest, box_bytes
from shared.protocol.site_id import SiteId


@dataclass(frozen=True)
class SealedCohort:
    """The sites whose numbers are added up, and the members who add."""

    round: int
    attempt: int
    rows: Sequence[CohortRow]  # in the order of their slots
    replies: Sequence[Sealed]  # of the same sites

    @property
    def members(self) -> tuple[int, ...]:
        """The slots of the committee."""
        return tuple(self.replies[0].boxes)

    @property
    def needed(self) -> int:
        """How many members' sums give the sum."""
        return self.replies[0].needed

    @property
    def sizes(self) -> list[int]:
        """How many sites each part has."""
        counts = Counter(row.part for row in self.rows)
        return [counts[part] for part in range(len(counts))]

    @property
    def sites(self) -> list[CohortSite]:
        """The sites as a request has them."""
        return [CohortSite(row.slot, row.part, row.request) for row in self.rows]

    def request(self, member: int, run: bytes, code: bytes) -> SumRequest:
        """The request to a member: the cohort, and each site's box for this member."""
        first = self.replies[0]
        boxes = [reply.boxes[member] for reply in self.replies]
        return SumRequest(
            self.round, self.attempt, first.numbers, len(self.sizes), first.digest, run, code,
            self.sites, boxes,
        )  # fmt: skip


def find_fault(
    reply: Sealed, round_: int, attempt: int, numbers: int, digest: bytes | None
) -> tuple[str, str] | None:
    """Why a sealed reply cannot be used, as a reason and a detail; None if it can.

    ``digest`` names the parameters that the round is measured at; None: any are accepted.
    """
    if (reply.round, reply.attempt) != (round_, attempt):
        detail = f"round {round_}, attempt {attempt} expected, got {reply.round}, {reply.attempt}"
        return "wrong round", detail
    if reply.numbers != numbers or any(len(b) != box_bytes(numbers) for b in reply.boxes.values()):
        return "wrong length", f"boxes of {numbers} numbers expected, got {reply.numbers}"
    if digest is not None and reply.digest != digest:
        return "wrong digest", f"{digest.hex()} expected, got {reply.digest.hex()}"
    return None


def agree_on_committee(
    replies: Sequence[Contribution],
) -> tuple[list[Contribution], list[Contribution]]:
    """Part the replies into those with the committee of most, and the others.

    Sites whose rosters differ draw other committees; their numbers cannot be in one sum.
    """
    votes = Counter(boxes_of(each).committee for each in replies)
    if not votes:
        return [], []
    most = max(votes, key=lambda committee: (votes[committee], repr(committee)))
    chosen = [each for each in replies if boxes_of(each).committee == most]
    return chosen, [each for each in replies if each not in chosen]


def divide(round_: int, attempt: int, parts: int, replies: Sequence[Contribution]) -> SealedCohort:
    """Make a cohort of replies in slot order, divided at random into parts of equal size."""
    name = f"{round_} {attempt} ".encode()
    order = sorted(replies, key=lambda each: sha256(name + boxes_of(each).request).digest())
    part_of = {each.slot: index % parts for index, each in enumerate(order)}
    rows = [
        CohortRow(round_, attempt, each.slot, each.site, part_of[each.slot],
                  boxes_of(each).request)
        for each in replies
    ]  # fmt: skip
    return SealedCohort(round_, attempt, rows, [boxes_of(each) for each in replies])


def go_on(rows: Sequence[CohortRow], replies: Sequence[Contribution]) -> SealedCohort | str:
    """The cohort that was written down, of replies that came again; or who is missing of it."""
    by_site = {(each.slot, boxes_of(each).request): boxes_of(each) for each in replies}
    missing = [row.site for row in rows if (row.slot, row.request) not in by_site]
    if missing:
        return f"site {missing[0]} of its cohort has not sent the same boxes again"
    again = [by_site[row.slot, row.request] for row in rows]
    return SealedCohort(rows[0].round, rows[0].attempt, rows, again)


def contribution_of(site: SiteId, reply: Sealed, examples: int) -> Contribution:
    """A contribution whose numbers nobody knows; its examples are those of every batch."""
    nothing = np.zeros(0, np.float32)
    return Contribution(
        reply.round, site.slot, site.name, examples, None, 0.0, nothing, sealed=reply
    )


def boxes_of(contribution: Contribution) -> Sealed:
    """The boxes of a contribution to a sealed round."""
    assert contribution.sealed is not None, "a sealed round has sealed replies alone"
    return contribution.sealed
