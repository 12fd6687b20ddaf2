"""One run from start to end: folder, strategy, report."""

import logging
from collections.abc import Callable
from pathlib import Path

from flwr.serverapp import Grid

from server.ledger.run_folder import OpenRun, open_run
from server.pages.model_card import write_card
from server.pages.run_page import write_page
from server.preflight.judge import check_before, is_long
from server.reporting import data_distribution
from server.reporting.report import MODEL, Report
from server.reporting.samples import Samples
from server.reporting.status_line import size_text
from server.rounds.after_commit import AfterCommit
from server.rounds.cohort import Cohort
from server.rounds.round_log import RoundLog
from server.rounds.strategy import ScalarStrategy
from server.tracking.session import make_trackers, track
from shared.base.errors import ConfigError
from shared.base.metrics import EvalSums, names_of_scores
from shared.base.plug_ins import list_plug_ins
from shared.base.text import escape_record
from shared.config.schema import Config
from shared.devices.names import kind_of
from shared.modes.estimators import EXACT, cost, estimator_of
from shared.modes.mode import mode_of, plan_of
from shared.objectives.reward import is_reward
from shared.protocol.messages import Hello
from shared.replica.stochastic_rounding import count_unperturbed
from shared.training.corpus import Corpus, load_evaluation
from shared.training.oracle import EVALUATION_BATCH, evaluate
from shared.training.validate import validate

LOG = logging.getLogger("dandelion")
MANY_SITES = 5000  # from here on, what they cost is said first
NUMBER_BYTES = 4


def serve(
    grid: Grid,
    config: Config,
    on_round: Callable[[Report, int], None] = lambda report, round_: None,
    all_dealt: bool = False,
) -> Path:
    """Train to ``num-rounds``, new or resumed; return the run folder.

    ``all_dealt``: every site has a shard of the run's data, and none has data of its own.

    Raises:
        ConfigError: the configuration cannot be run, or is not that of the run to resume.
        LedgerError: the ledger to resume is missing or damaged.
        StalledError: too few sites or valid replies.
    """
    logging.getLogger("flwr").addFilter(_is_worth_logging)
    LOG.addFilter(escape_record)
    trackers = make_trackers(config)
    with open_run(validate(config)) as run:
        with track(trackers, run.folder, run.ledger, run.config) as hand_on:

            def show(report: Report, round_: int) -> None:
                hand_on()
                on_round(report, round_)

            train(grid, run, show, all_dealt).finish(run.oracle.language_model)
        write_pages(run)
        LOG.info("done: %s", run.folder)
        return run.folder


def write_pages(run: OpenRun) -> None:
    """Write the run's report and, if the model was saved, its card."""
    write_page(run.folder, run.ledger, run.config)
    if run.config.run.save_model:
        into, last = run.folder / MODEL, run.ledger.last_round
        write_card(into, run.folder, run.ledger, run.config, last)


def train(
    grid: Grid, run: OpenRun, on_round: Callable[[Report, int], None], all_dealt: bool = False
) -> Report:
    """Commit the rounds that are left, logging each; ``on_round`` is called after every one."""
    names = names_of_scores(getattr(run.oracle.task, "score_names", ()))
    report = Report(run.folder, run.ledger, run.config, run.oracle.replica, names)
    report.rebuild()
    warn_of_rounding(run)
    warn_of_cost(run.config)

    corpus = Corpus.of(run.config, run.oracle.language_model)
    if all_dealt:
        check_shards(corpus)

    def show(round_: int) -> None:
        report.add(round_)
        if round_ and not (run.folder / data_distribution.SHARDS_JSON).exists():
            data_distribution.write(data_distribution.summarize_run(run.ledger, corpus), run.folder)
        on_round(report, round_)

    rows = load_evaluation(corpus, run.oracle.language_model)
    if run.ledger.last_round == 0:
        run.oracle.check_objective(rows[:EVALUATION_BATCH])
    if run.ledger.last_round == 0 and is_long(run.config):
        for reason in check_before(run.config, run.oracle, rows, run.folder).reasons:
            LOG.warning("preflight: %s", reason)
    log = RoundLog(run.ledger)
    cohort = Cohort(run.config, reason_against(run), run.name, log, run.ledger.record_site)
    samples = Samples(run.folder, run.config, run.oracle, rows)

    def evaluate_all() -> EvalSums:
        samples.add(run.oracle.replica.round)
        return evaluate(run.oracle, rows)

    after_commit = AfterCommit(run, evaluate_all, show)
    ScalarStrategy(run, cohort, log, after_commit).start(grid)
    return report


def check_shards(corpus: Corpus) -> None:
    """Divide the data as the sites will, before any is asked.

    Raises:
        ConfigError: there are more sites than shards can be made.
    """
    sites = corpus.config.federation.num_clients
    try:
        corpus.shard(0, sites)
    except ConfigError as error:
        raise ConfigError(f"num-clients = {sites}: {error}") from error


def warn_of_rounding(run: OpenRun) -> None:
    """Warn if ``eps`` is lost to rounding at more than a few parameters."""
    model, eps = run.oracle.replica.model, run.config.zo.eps
    rounded = count_unperturbed(model.flat, model.layout, eps)
    is_perturbed = mode_of(run.config).measures and estimator_of(run.config) != EXACT
    if not is_perturbed or not rounded.matters:
        return
    LOG.warning(
        "eps = %g is lost to rounding at %.2g %% of the parameters in %s%s; 99 %% of them would "
        "notice eps = %.2g",
        eps, 100 * rounded.share, run.config.model.dtype,
        _examples(rounded.tensors), rounded.needed,
    )  # fmt: skip


def warn_of_cost(config: Config) -> None:
    """Say what a round will cost before anything is done, if many sites take part in each."""
    sites, cohort = config.federation.num_clients, config.federation.clients_per_round
    if sites < MANY_SITES:
        return
    each = cohort or sites
    plan = plan_of(config, 1)
    numbers = config.zo.queries * config.training.local_steps * plan.measure
    LOG.warning(
        "%s sites, %s of them in each round: %s forward passes over zo-batch-size examples and %s "
        "of numbers up a round%s; each site is set up first",
        f"{sites:,}", f"{each:,}" if cohort else "all", f"{each * cost(config, plan, 1):,}",
        size_text(each * numbers * NUMBER_BYTES),
        "" if cohort else " (clients-per-round makes it fewer)",
    )  # fmt: skip


def _examples(names: tuple[str, ...]) -> str:
    return f", most of all in {len(names)} tensors such as {names[0]}" if names else ""


def reason_against(run: OpenRun) -> Callable[[Hello], str]:
    """Return a function that says why a site cannot take part; empty if it can."""
    replica, config = run.oracle.replica, run.config
    device = replica.model.flat.device.type
    exact = replica.directions.exact and replica.optimizer.exact

    def reason(hello: Hello) -> str:
        if hello.code != run.code.hex():
            where = f", or of app {config.model.app!r}" if config.model.app else ""
            here = ", ".join(list_plug_ins()) or "none"
            return (
                f"other source files{where}: {run.code.hex()} expected, got {hello.code}; "
                f"they include plug-ins (at the server: {here})"
            )
        if hello.base != run.oracle.base.hex():
            what = "base model or reward" if is_reward(config.zo.objective) else "base model"
            return f"another {what}: {run.oracle.base.hex()} expected, got {hello.base}"
        if mode_of(config).averages_parameters and not hello.can_backpropagate:
            mode = config.training.mode
            return f"mode {mode!r} trains at the sites, and this one cannot backpropagate"
        if not exact and kind_of(hello.device) != device:
            return (
                f"directions {config.zo.directions!r} or optimizer {config.optimizer.name!r} "
                f"differ between kinds of devices: {device} expected, got {hello.device}"
            )
        return ""

    return reason


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Drop what Flower's strategies log of every small vector that they aggregate."""
    return not str(record.msg).startswith("%s: Received")
