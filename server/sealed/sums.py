"""The sums of a committee become the numbers of a round, now and when it is verified."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.ledger.records import CohortRow, Contribution, SumRow
from shared.base.errors import WireError
from shared.config.schema import Config
from shared.privacy.grid import from_grid
from shared.randomness.streams import SHARED_SLOT
from shared.sealed.field import PRIME, to_integers
from shared.sealed.shamir import combine


@dataclass(frozen=True)
class OpenedSums:
    """The plain sums of a cohort's parts, and the members whose sums were wrong."""

    steps: NDArray[np.int64]  # (parts, q) grid steps
    liars: tuple[int, ...]  # slots


def open_sums(rows: Sequence[SumRow], parts: int) -> OpenedSums:
    """Interpolate each part's sum; a member who was wrong in one part is a liar.

    Raises:
        WireError: there are too few sums, or they do not agree.
    """
    if not rows:
        raise WireError("sums of members expected, got none")
    values = {row.member: np.frombuffer(row.values, "<u8").reshape(parts, -1) for row in rows}
    opened = [
        combine({member: sums[part] for member, sums in values.items()}, rows[0].needed)
        for part in range(parts)
    ]
    steps = np.vstack([to_integers(each.vector) for each in opened])
    return OpenedSums(steps, tuple(sorted({slot for each in opened for slot in each.liars})))


def find_wrong_form(sums: NDArray[np.uint64], parts: int, numbers: int) -> str:
    """Why a member's sums are none, in words; empty if they can be."""
    if sums.shape != (parts, numbers):
        return f"{parts} sums of {numbers} numbers expected, got {sums.shape}"
    if (sums >= np.uint64(PRIME)).any():
        return "numbers below 2^61 - 1 expected"
    return ""


def pool(
    config: Config, cohort: Sequence[CohortRow], steps: NDArray[np.int64]
) -> list[Contribution]:
    """One contribution for each part: its mean differences, as if one site had measured them.

    They are the plain sum of the sites' grid steps, divided by the units that they have on average.
    """
    settings, batch = config.privacy, config.zo.batch_size
    clip = settings.clip_of_differences(config.zo.eps, config.zo.queries)
    pooled = []
    for part, row in enumerate(steps):
        count = sum(each.part == part for each in cohort)
        pooled.append(
            Contribution(
                round=cohort[0].round, slot=SHARED_SLOT, site=f"part {part}",
                examples=batch * count, loss=None, seconds=0.0,
                differences=from_grid(row, clip, batch * count),
            )
        )  # fmt: skip
    return pooled
