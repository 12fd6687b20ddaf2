"""The request to one site: what it missed, and the round to measure."""

from flwr.app import Message, MessageType

from server.catchup import CatchUp, catch_up, full_parameters
from server.cohort import Site
from server.folder import Run
from server.snapshots import Snapshots
from shared.schedules import learning_rate
from shared.wire import Request, encode_request, pack


class Asking:
    """Makes requests for the round after the one that the server's replica is at."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._snapshots = Snapshots(run.ledger)

    def message(self, site: Site, round_: int) -> Message:
        """The request for a site, given where its replica is known to be."""
        run, way = self._run, self._way(site, round_ - 1)
        payload = encode_request(
            Request(
                round=round_,
                learning_rate=self.rate(round_),
                digest=run.learner.replica.digest(),
                run=run.name,
                code=run.code,
                entries=way.entries,
                reset=way.reset,
            )
        )
        return Message(
            content=pack(payload, way.snapshot),
            dst_node_id=site.node_id,
            message_type=MessageType.TRAIN,
            group_id=str(round_),
            ttl=run.config.round_timeout,
        )

    def rate(self, round_: int) -> float:
        """The learning rate of a round, which its entry will carry."""
        c = self._run.config
        return learning_rate(
            round_,
            rate=c.learning_rate,
            schedule=c.lr_schedule,
            warmup_rounds=c.warmup_rounds,
            rounds=c.num_rounds,
        )

    def _way(self, site: Site, to: int) -> CatchUp:
        run = self._run
        if run.config.downlink == "dense":
            return full_parameters(run.learner.replica, run.name)
        return catch_up(run.config, run.ledger, self._snapshots, site.round, to)
