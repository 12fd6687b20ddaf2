"""One run from start to end: folder, strategy, report."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from flwr.serverapp import Grid

from server.cohort import Cohort
from server.evaluation import Evaluation, held_out
from server.folder import Run, opened
from server.preflight import check_before, is_long
from server.report import Report
from server.settle import Settle
from server.strategy import ScalarStrategy
from shared.config import Config
from shared.wire import Hello

LOG = logging.getLogger("dandelion")
EVALUATION_BATCH = 16  # blocks at once


def serve(
    grid: Grid,
    run_config: Mapping[str, object],
    on_round: Callable[[Report, int], None] = lambda report, round_: None,
) -> Path:
    """Train to ``num-rounds``, new or resumed; return the run folder.

    Raises:
        ConfigError: the configuration cannot be run, or is not that of the run to resume.
        LedgerError: the ledger to resume is missing or damaged.
        StalledError: too few sites or valid replies.
    """
    logging.getLogger("flwr").addFilter(_not_of_aggregation)
    with opened(Config.from_run_config(run_config)) as run:
        train(grid, run, on_round).finish(run.learner.language_model)
        LOG.info("done: %s", run.folder)
        return run.folder


def train(grid: Grid, run: Run, on_round: Callable[[Report, int], None]) -> Report:
    """Commit the rounds that are left, logging each; ``on_round`` is told of every one."""
    report = Report(run.folder, run.ledger, run.config, run.learner.replica)
    report.rebuild()

    def shown(round_: int) -> None:
        report.add(round_)
        on_round(report, round_)

    rows = held_out(run.config, run.learner.language_model)
    if run.ledger.last_round == 0 and is_long(run.config):
        found = check_before(run.config, run.learner, rows, run.folder)
        for reason in found.reasons:
            LOG.warning("preflight: %s", reason)
    evaluate = Evaluation(run.learner, rows, EVALUATION_BATCH)
    cohort = Cohort(run.config, acceptance(run), run.name, run.ledger.record_site)
    ScalarStrategy(run, cohort, Settle(run, evaluate, shown)).start(grid)
    return report


def acceptance(run: Run) -> Callable[[Hello], str]:
    """Say of a site that introduces itself why it cannot take part; nothing where it can."""
    replica, config = run.learner.replica, run.config
    device = replica.model.flat.device.type
    exact = replica.directions.exact and replica.optimizer.exact

    def accept(hello: Hello) -> str:
        if hello.code != run.code.hex():
            return f"other source files: {run.code.hex()} expected, got {hello.code}"
        if hello.base != run.learner.base.hex():
            return f"another base model: {run.learner.base.hex()} expected, got {hello.base}"
        if config.mode == "fedavg" and not hello.can_backpropagate:
            return "mode 'fedavg' trains at the sites, and this one cannot backpropagate"
        if not exact and hello.device.split(":")[0] != device:
            return (
                f"directions {config.directions!r} or optimizer {config.optimizer!r} differ "
                f"between kinds of devices: {device} expected, got {hello.device}"
            )
        return ""

    return accept


def _not_of_aggregation(record: logging.LogRecord) -> bool:
    """Flower's strategies announce every small vector that they aggregate; nobody asked."""
    return not str(record.msg).startswith("%s: Received")
