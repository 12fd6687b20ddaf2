"""What follows the commit of a round: digest, snapshot, evaluation; all of it can be repeated."""

from collections.abc import Callable, Iterable

from server.ledger.ledger import Ledger
from server.ledger.records import ALL_SITES, SERVER, Contribution
from server.ledger.run_folder import OpenRun
from server.ledger.snapshots import Snapshots
from shared.base.metrics import EvalSums


class AfterCommit:
    """Called with a round that is committed and applied; after a crash, called again for the last.

    Each part is recorded once in the ledger, and skipped if it is recorded already. A replica that
    is behind (``server-replica = lazy``) is brought to the round only for a snapshot or evaluation.
    """

    def __init__(
        self, run: OpenRun, evaluate: Callable[[], EvalSums], report: Callable[[int], None]
    ) -> None:
        self._run, self._evaluate, self._report = run, evaluate, report
        self._snapshots = Snapshots(run.ledger)

    def __call__(self, round_: int) -> None:
        """Record the digest, write a snapshot and evaluate if due, and report the round."""
        config, ledger, replica = self._run.config, self._run.ledger, self._run.oracle.replica
        snapshot = bool(round_) and self._needs_snapshot(round_)
        evaluation = round_ in (0, config.training.rounds) or _is_due(
            round_, config.evaluation.interval
        )
        if replica.round != round_ and not (snapshot or evaluation):
            self._report(round_)
            return
        self._run.catch_up()
        ledger.record_digest(round_, replica.digest())
        if snapshot and ledger.snapshot(round_) is None:
            before = self._snapshots.latest(round_)
            self._snapshots.write(replica, self._run.name)
            if before is not None:  # so that the run survives the loss of its newest snapshot
                ledger.drop_gradients(before.round)
        if evaluation and ledger.evaluation(round_) is None:
            sums = self._evaluate()
            ledger.record_scores(round_, SERVER, sums.scores())
            ledger.record_choices(round_, sums.confusion)
            ledger.record_evaluation(round_, sums.loss)
        self._report(round_)

    def _needs_snapshot(self, round_: int) -> bool:
        """Whether a round gets a snapshot: when it is due, and after a rewind.

        Without the latter, all later rounds could be reached only through the round that the run
        went back to, and gradients before it may be dropped.
        """
        interval = self._run.config.run.snapshot_interval
        is_rewind = any(rewind.round == round_ for rewind in self._run.ledger.rewinds())
        return _is_due(round_, interval) or (interval > 0 and is_rewind)


def record_outcomes(ledger: Ledger, round_: int, sites: Iterable[Contribution]) -> None:
    """Record the scores of the sites that evaluated a round's parameters, each and together."""
    outcomes = {site.site: site.outcome for site in sites if site.outcome is not None}
    if not outcomes:
        return
    whole = sum(outcomes.values(), EvalSums(0.0, 0))
    for name, outcome in {**outcomes, ALL_SITES: whole}.items():
        ledger.record_scores(round_, name, {"loss": outcome.loss, **outcome.scores()})


def _is_due(round_: int, interval: int) -> bool:
    return interval > 0 and round_ % interval == 0
