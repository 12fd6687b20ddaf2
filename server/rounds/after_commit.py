"""What follows the commit of a round: digest, snapshot, evaluation; all safe to do again."""

from collections.abc import Callable, Iterable

from server.ledger.ledger import Ledger
from server.ledger.records import ALL_SITES, SERVER, Contribution
from server.ledger.run_folder import Run
from server.ledger.snapshots import Snapshots
from shared.base.metrics import EvalSums


class AfterCommit:
    """Called with a round that is committed and applied; after a crash, called again for the last.

    Each part is noted once in the ledger and skipped where it is noted already. A replica that is
    behind (``server-replica = lazy``) stays so where only its digest would be noted.
    """

    def __init__(
        self, run: Run, evaluate: Callable[[], EvalSums], shown: Callable[[int], None]
    ) -> None:
        self._run, self._evaluate, self._shown = run, evaluate, shown
        self._snapshots = Snapshots(run.ledger)

    def __call__(self, round_: int) -> None:
        """Note what the parameters are, keep them where due, evaluate where due, show it."""
        config, ledger, replica = self._run.config, self._run.ledger, self._run.oracle.replica
        snapshot = bool(round_) and self._keeps(round_)
        evaluation = round_ in (0, config.num_rounds) or _due(round_, config.eval_interval)
        if replica.round != round_ and not (snapshot or evaluation):
            self._shown(round_)
            return
        self._run.catch_up()
        ledger.record_digest(round_, replica.digest())
        if snapshot and ledger.snapshot(round_) is None:
            before = self._snapshots.latest(round_)
            self._snapshots.write(replica, self._run.name)
            if before is not None:  # so that the newest snapshot can be lost, and the run not
                ledger.drop_gradients(before.round)
        if evaluation and ledger.evaluation(round_) is None:
            found = self._evaluate()
            ledger.record_scores(round_, SERVER, found.scores())
            ledger.record_evaluation(round_, found.loss)
        self._shown(round_)

    def _keeps(self, round_: int) -> bool:
        """Whether a round gets a snapshot: when it is due, and after a rewind.

        What that went back to would else be the one way to all later rounds, where gradients before
        it were dropped.
        """
        interval = self._run.config.snapshot_interval
        went_back = any(rewind.round == round_ for rewind in self._run.ledger.rewinds())
        return _due(round_, interval) or (interval > 0 and went_back)


def record_outcomes(ledger: Ledger, round_: int, sites: Iterable[Contribution]) -> None:
    """Note what sites that evaluated the parameters of a round reached, each and together."""
    found = {site.site: site.outcome for site in sites if site.outcome is not None}
    if not found:
        return
    whole = sum(found.values(), EvalSums(0.0, 0))
    for name, outcome in {**found, ALL_SITES: whole}.items():
        ledger.record_scores(round_, name, {"loss": outcome.loss, **outcome.scores()})


def _due(round_: int, interval: int) -> bool:
    return interval > 0 and round_ % interval == 0
