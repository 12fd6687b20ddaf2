"""The request to one site: what it missed, and the round to measure."""

from flwr.app import Message, MessageType

from server.catchup import CatchUp, catch_up, full_parameters
from server.cohort import Site
from server.folder import Run
from server.snapshots import Snapshots
from shared.entry import is_dense
from shared.errors import GapError
from shared.modes import plan_of
from shared.schedules import learning_rate
from shared.wire import Request, encode_request, pack

Frame = tuple[bytes, bytes | None, bool]  # request, snapshot, whether gradients are in the request


class Asking:
    """Makes requests for the round after the one that the server's replica is at."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._snapshots = Snapshots(run.ledger)
        self._round = 0
        self._frames: dict[int | None, Frame] = {}  # of that round

    def message(self, site: Site, round_: int) -> Message:
        """The request for a site, given where its replica is known to be."""
        payload, snapshot, dense = self._frame(site.round, round_)
        return Message(
            content=pack(payload, snapshot, dense),
            dst_node_id=site.node_id,
            message_type=MessageType.TRAIN,
            group_id=str(round_),
            ttl=self._run.config.round_timeout,
        )

    def rate(self, round_: int) -> float:
        """The learning rate of a round, which its entry will carry; rewinds have lowered it."""
        c, rewinds = self._run.config, self._run.ledger.rewinds()
        scale = rewinds[-1].scale if rewinds else 1.0
        backpropagates = plan_of(c, round_).backpropagate
        return scale * learning_rate(
            round_,
            rate=(c.bp_learning_rate if backpropagates else 0.0) or c.learning_rate,
            schedule=c.lr_schedule,
            warmup_rounds=c.warmup_rounds,
            rounds=c.num_rounds,
        )

    def _frame(self, site_round: int | None, round_: int) -> Frame:
        """Request and snapshot for all sites that are at the same round: made once."""
        if round_ != self._round:
            self._round, self._frames = round_, {}
        if site_round not in self._frames:
            self._frames[site_round] = self._made(site_round, round_)
        return self._frames[site_round]

    def _made(self, site_round: int | None, round_: int) -> Frame:
        run, way = self._run, self._way(site_round, round_ - 1)
        request = Request(
            round=round_,
            learning_rate=self.rate(round_),
            digest=run.learner.replica.digest(),
            run=run.name,
            code=run.code,
            entries=way.entries,
            reset=way.reset,
        )
        dense = any(is_dense(entry) for entry in way.entries)
        return encode_request(request), way.snapshot, dense

    def _way(self, site_round: int | None, to: int) -> CatchUp:
        run = self._run
        if run.config.downlink == "dense":
            return full_parameters(run.learner.replica, run.name)
        try:
            return catch_up(run.config, run.ledger, self._snapshots, site_round, to)
        except GapError:
            return full_parameters(run.learner.replica, run.name)
