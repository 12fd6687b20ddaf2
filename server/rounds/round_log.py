"""What has crossed the network and was refused, until a round writes it into the ledger."""

from collections.abc import Iterable

from server.ledger.records import Refusal
from server.ledger.run_folder import Run
from server.rounds.cohort import Cohort
from server.rounds.open_round import LateReplies
from server.rounds.replies import Judge
from shared.protocol.flower_records import Direction, Transfer


class RoundLog:
    """Bytes and refusals that are not in the ledger yet; each is written once (I6)."""

    def __init__(self, run: Run, cohort: Cohort, judge: Judge, late: LateReplies) -> None:
        self._run, self._cohort, self._judge, self._late = run, cohort, judge, late
        self.transfers: list[Transfer] = []  # beside those of introductions

    def take_late(self) -> None:
        """Note what rounds that are closed did not get in time."""
        transfers, refusals = self._late.take()
        self.transfers += transfers
        self._judge.refusals += refusals

    def until(self, round_: int) -> tuple[list[Transfer], list[Refusal]]:
        """What is to be written with a round: all but what concerns later ones, which stays."""
        cohort, judge = self._cohort, self._judge
        transfers, refusals = cohort.transfers + self.transfers, cohort.refusals + judge.refusals
        cohort.transfers, cohort.refusals = [], []
        self.transfers = [t for t in transfers if t.round > round_]
        judge.refusals = [r for r in refusals if r.round > round_]
        return (
            [t for t in transfers if t.round <= round_],
            [r for r in refusals if r.round <= round_],
        )

    def write_rest(self) -> None:
        """Write what no round will: late replies, and those of rounds that were forsaken."""
        self.take_late()
        self._run.ledger.note(*self.until(self._run.config.num_rounds))

    def payload(self, direction: Direction, round_: int, transfers: Iterable[Transfer]) -> int:
        """Bytes of a round that is about to be written, attempts that were skipped included."""
        earlier = self._run.ledger.payload_bytes(round_, direction)
        return earlier + sum(t.payload for t in transfers if t.direction == direction)
