"""Settings that are each in range but cannot work together, refused before anything is sent."""

from shared.aggregation import fewest_replies, keeps_whole_vectors
from shared.base.errors import ConfigError
from shared.config.schema import Config, settings
from shared.config.sections import FUNCTION
from shared.devices.names import check_devices
from shared.modes.estimators import EXACT
from shared.modes.measuring_rules import check_measuring
from shared.modes.mode import mode_of
from shared.tasks.text_rules import check_text
from shared.training.components import effective_options
from shared.training.privacy_rules import check_privacy

OF_LANGUAGE_MODELS = ("lora", "head", "reduced", "words", "prior")  # scopes
OF_TEXT = (  # settings that mean nothing to a problem of one's own
    *("model", "task", "label-words", "prompt", "dataset", "bp-dataset", "eval-dataset"),
    *("text-column", "label-column", "max-samples", "block-size", "partition-by", "data-part"),
    *("features", "feature-scaling", "objective"),
)
MOST_DRAWS = 1 << 16  # directions, and batches, of one round
MOST_SLOTS = (1 << 16) - 1  # sites with directions of their own in one entry


def check_combinations(c: Config) -> None:
    """Refuse what cannot work.

    Raises:
        ConfigError: says which settings, and what to set instead.
    """
    _check_problem(c)
    _check_rounds(c)
    _check_staleness(c)
    _check_aggregation(c)
    _check_mode(c)
    check_measuring(c)
    _check_averaging(c)
    _check_gradients(c)
    _check_objective(c)
    _check_model(c)
    _check_data(c)
    check_privacy(c)
    check_text(c)
    check_devices(c)


def _check_problem(c: Config) -> None:
    """A problem of one's own names model, examples and loss, and has no tokenizer."""
    app, values = c.model.app, c.to_run_config()
    if not app:
        return
    if not FUNCTION.fullmatch(app):
        raise ConfigError(f"app: module:attribute expected, got {app!r}")
    if given := [key for key in OF_TEXT if values[key] != settings()[key].default]:
        raise ConfigError(
            f"{given[0]} = {values[given[0]]!r} with app {app!r}: the problem itself says its "
            "model, examples and loss; leave the setting out"
        )
    if c.model.scope in OF_LANGUAGE_MODELS or c.model.is_masked:
        raise ConfigError(
            f"scope {c.model.scope!r} with app {app!r}: a model of transformers with a tokenizer "
            "is needed, and a problem has neither; use full, bias, last:<blocks> or "
            "regex:<pattern>, or requires_grad = False in its model"
        )
    if c.zo.parallel_queries > 1:
        raise ConfigError(
            f"parallel-queries = {c.zo.parallel_queries} with app {app!r}: only the loss of "
            "language modelling, which a tokenizer feeds, is batched over directions; use 1"
        )


def _check_rounds(c: Config) -> None:
    draws = c.zo.queries * c.training.local_steps
    if draws > MOST_DRAWS:
        raise ConfigError(f"queries × local-steps: at most {MOST_DRAWS} expected, got {draws}")
    if 0 < c.federation.clients_per_round < c.federation.min_replies:
        raise ConfigError(
            f"clients-per-round: 0 or at least min-replies = {c.federation.min_replies} expected, "
            f"got {c.federation.clients_per_round}: every round would be skipped"
        )


def _check_staleness(c: Config) -> None:
    """What must be as it was one round ago is not kept: parameters as a whole, guidance, debts."""
    for key, value, holds in (
        ("downlink", c.federation.downlink, c.federation.downlink == "dense"),
        ("guidance", c.bp.guidance, mode_of(c).keeps_guidance(c)),
        ("error-feedback", "true", c.bp.error_feedback),
        ("server-replica", "lazy", c.run.server_replica == "lazy"),
    ):
        if c.federation.staleness and holds:
            raise ConfigError(
                f"staleness = {c.federation.staleness} with {key} = {value}: it follows the newest "
                "round, and sites measure at the one before; use staleness = 0, or the key's "
                "default"
            )


def _check_aggregation(c: Config) -> None:
    rule, independent = c.federation.aggregation, c.zo.seed_schedule == "independent"
    if rule != "mean" and independent:
        raise ConfigError(
            f"aggregation {rule!r} compares sites direction by direction and needs "
            "seed-schedule 'shared'; with 'independent' each site has its own: use 'mean'"
        )
    sites = c.federation.clients_per_round or c.federation.num_clients
    if independent and sites > MOST_SLOTS:
        raise ConfigError(
            f"seed-schedule 'independent' with {sites} sites a round: an entry takes "
            f"the numbers of at most {MOST_SLOTS}: set clients-per-round, or use 'shared'"
        )
    needed = fewest_replies(c)
    if c.federation.min_replies < needed:
        liars = effective_options(c)["malicious-clients"]
        raise ConfigError(
            f"aggregation {rule!r} with malicious-clients = {liars} needs "
            f"min-replies >= {needed}, got {c.federation.min_replies}"
        )
    if keeps_whole_vectors(c) and mode_of(c).leans_on_gradient:
        raise ConfigError(
            f"aggregation {rule!r} keeps whole replies, but in mode {c.training.mode!r} a site's "
            "numbers and its gradient are combined apart: use mean, median or trimmed-mean"
        )


def _check_mode(c: Config) -> None:
    mode, name = mode_of(c), c.training.mode
    if c.training.local_steps > 1 and not mode.takes_local_steps:
        raise ConfigError(
            f"local-steps = {c.training.local_steps} with mode {name!r}: a gradient is of one "
            "point; use local-steps = 1, or mode zo or fedavg"
        )
    guided = mode.keeps_guidance(c)
    if c.zo.parallel_queries > 1 and (guided or not mode.measures):
        raise ConfigError(
            f"parallel-queries = {c.zo.parallel_queries} with mode {name!r}"
            f"{', guidance reuse' * guided}: no round measures plain directions; use 1"
        )


def _check_averaging(c: Config) -> None:
    """Where parameters are averaged, sites have stepped, by AdamW, and no query is spent."""
    if not mode_of(c).averages_parameters:
        return
    name, momentum = c.training.mode, c.options.get("momentum", 0.0)
    if c.optimizer.name != "sgd" or momentum:
        raise ConfigError(
            f"optimizer {c.optimizer.name!r} with momentum {momentum}: in mode {name!r} sites step "
            "by AdamW and parameters are averaged: use sgd, momentum 0"
        )
    if c.model.dtype != "float32":
        raise ConfigError(
            f"dtype {c.model.dtype!r} with mode {name!r}: the small steps of AdamW at the sites "
            "would be lost: use float32"
        )
    if c.zo.query_data == "fresh":
        raise ConfigError(f"query-data 'fresh' with mode {name!r}: no query is spent there")


def _check_gradients(c: Config) -> None:
    if c.bp.instruct_directions == "masked" and mode_of(c).keeps_guidance(c):
        raise ConfigError(
            "guidance 'reuse' with instruct-directions 'masked': between BP rounds a masked "
            "estimate would be as large as a gradient: use tilted, or guidance fresh"
        )
    if c.bp.error_feedback and c.bp.codec == "float32":
        raise ConfigError("error-feedback with codec float32: nothing is lost that could be owed")
    if c.bp.split_data and c.bp.dataset:
        raise ConfigError(
            f"split-bp-zo-data with bp-dataset = {c.bp.dataset!r}: these are apart already; use one"
        )


def _check_objective(c: Config) -> None:
    """What is measured may be no function that has slopes, or one of whole batches."""
    name, mode = c.zo.objective, mode_of(c)
    if name == "loss":
        return
    if mode.always_backpropagates or mode.has_interval:
        raise ConfigError(
            f"objective {name!r} with mode {c.training.mode!r}, which backpropagates the loss: "
            "use mode zo, or objective loss"
        )
    if c.zo.parallel_queries > 1:
        raise ConfigError(
            f"objective {name!r} with parallel-queries = {c.zo.parallel_queries}: only the loss of "
            "language modelling is batched over directions; use 1"
        )
    if c.zo.estimator == EXACT:
        raise ConfigError(
            f"objective {name!r} with estimator 'exact': only the loss has exact slopes; use "
            "two-point, forward or auto"
        )
    if name == "f1" and not c.zo.batch_size:
        raise ConfigError(
            "objective 'f1' with zo-batch-size = 0: F1 is of one forward pass, and all of a site's "
            "examples take several; set zo-batch-size"
        )
    if name == "f1" and c.federation.merge_clients:
        raise ConfigError(
            "objective 'f1' with merge-clients: F1 is of one site's batch, and merged sites share "
            "theirs; use accuracy or margin, or no merging"
        )


def _check_model(c: Config) -> None:
    if c.zo.parallel_queries > 1 and (c.model.dtype != "float32" or c.model.is_masked):
        raise ConfigError(
            f"parallel-queries = {c.zo.parallel_queries} with {c.model.dtype!r} and scope "
            f"{c.model.scope!r}: only float32 and no mask is batched over directions; use 1"
        )
    lora = c.model.scope == "lora"
    for key, scope, fits in (
        ("lora-blocks", "lora", lora),
        ("lora-targets", "lora", lora),
        ("mask", "mask:<share>", c.model.is_masked),
    ):
        if not fits and (value := c.to_run_config()[key]) != settings()[key].default:
            raise ConfigError(f"{key} = {value!r:.60} needs scope {scope}, got {c.model.scope!r}")


def _check_data(c: Config) -> None:
    if c.data.task != "classification" and c.data.label_words:
        raise ConfigError(
            f"label-words {c.data.label_words!r} need task classification, got {c.data.task!r}"
        )
