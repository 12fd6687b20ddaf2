"""The request to one site: what it missed, and the round to measure."""

from flwr.app import Message, MessageType

from server.ledger.run_folder import Run
from server.ledger.snapshots import Snapshots
from server.rounds.catch_up import CatchUp, catch_up, full_parameters
from server.rounds.cohort import SiteRecord
from shared.base.errors import GapError, LedgerError
from shared.modes.mode import measured_at, plan_of
from shared.optimizers.schedules import learning_rate
from shared.protocol.entry import is_dense
from shared.protocol.flower_records import pack
from shared.protocol.messages import UNKNOWN, Request, encode_request

Frame = tuple[bytes, bytes | None, bool]  # request, snapshot, whether gradients are in the request


class RequestBuilder:
    """Makes requests for the rounds that are open: the next one, with staleness two."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._snapshots = Snapshots(run.ledger)
        self._frames: dict[tuple[int, int | None], Frame] = {}  # of the rounds that are open

    def message(self, site: SiteRecord, round_: int, at: int | None) -> Message:
        """The request for a site whose replica is at a round; None: it has none to be used."""
        payload, snapshot, dense = self._frame(at, round_)
        return Message(
            content=pack(payload, snapshot, dense),
            dst_node_id=site.node_id,
            message_type=MessageType.TRAIN,
            group_id=str(round_),
            ttl=self._run.config.round_timeout * (1 + self._run.config.staleness),
        )

    def digest(self, round_: int) -> bytes | None:
        """Of the parameters that a round is measured at: the replica's, or as it was recorded.

        None where a lazy server has not come there yet.

        Raises:
            LedgerError: none was recorded.
        """
        run, at = self._run, measured_at(self._run.config, round_)
        if run.oracle.replica.round == at:
            return run.oracle.replica.digest()
        found = run.ledger.digest(at)
        if found is None and run.config.server_replica == "eager":
            raise LedgerError(f"{run.ledger.path}: table digests: round {at} is missing")
        return found

    def evaluates(self, round_: int) -> bool:
        """Whether sites evaluate the parameters that a round is measured at."""
        c = self._run.config
        at = measured_at(c, round_)
        due = c.eval_interval > 0 and at % c.eval_interval == 0
        return bool(c.site_eval_fraction) and due

    def rate(self, round_: int) -> float:
        """The learning rate of a round, which its entry will carry; rewinds have lowered it."""
        c = self._run.config
        backpropagates = plan_of(c, round_).backpropagate
        return self._scale * learning_rate(
            round_,
            rate=(c.bp_learning_rate if backpropagates else 0.0) or c.learning_rate,
            schedule=c.lr_schedule,
            warmup_rounds=c.warmup_rounds,
            rounds=c.num_rounds,
        )

    def _local_rate(self, round_: int) -> float:
        """The learning rate of sites' own steps, which their requests carry."""
        own = self._run.config.local_learning_rate
        return self._scale * own if own else self.rate(round_)

    @property
    def _scale(self) -> float:
        """What rewinds have lowered all learning rates by."""
        rewinds = self._run.ledger.rewinds()
        return rewinds[-1].scale if rewinds else 1.0

    def _frame(self, site_round: int | None, round_: int) -> Frame:
        """Request and snapshot for all sites that are at the same round: made once."""
        if (name := (round_, site_round)) not in self._frames:
            open_ = round_ - self._run.config.staleness
            self._frames = {key: made for key, made in self._frames.items() if key[0] >= open_}
            self._frames[name] = self._made(site_round, round_)
        return self._frames[name]

    def _made(self, site_round: int | None, round_: int) -> Frame:
        run, way = self._run, self._way(site_round, measured_at(self._run.config, round_))
        request = Request(
            round=round_,
            learning_rate=self._local_rate(round_),
            digest=self.digest(round_) or UNKNOWN,
            run=run.name,
            code=run.code,
            entries=way.entries,
            reset=way.reset,
            evaluate=self.evaluates(round_),
        )
        dense = any(is_dense(entry) for entry in way.entries)
        return encode_request(request), way.snapshot, dense

    def _way(self, site_round: int | None, to: int) -> CatchUp:
        run = self._run
        if run.config.downlink == "dense":
            return self._whole()
        try:
            return catch_up(run.config, run.ledger, self._snapshots, site_round, to)
        except GapError:
            if run.ledger.last_round != to:
                raise
            return self._whole()

    def _whole(self) -> CatchUp:
        self._run.catch_up()
        return full_parameters(self._run.oracle.replica, self._run.name)
