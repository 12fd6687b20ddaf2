"""Settings that are each in range but cannot work together, refused before anything is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.base.errors import ConfigError

if TYPE_CHECKING:
    from shared.config.schema import Config

MOST_DRAWS = 1 << 16  # directions, and batches, of one round
MOST_GROUPS = (1 << 16) - 1  # sites with directions of their own in one entry
COMPARING = ("krum", "multi-krum", "bulyan")  # rules that choose whole replies


def check_combinations(c: Config) -> None:
    """Refuse what cannot work.

    Raises:
        ConfigError: says which settings, and what to set instead.
    """
    _check_rounds(c)
    _check_staleness(c)
    _check_aggregation(c)
    _check_mode(c)
    _check_model(c)
    _check_optimizer(c)
    _check_merging(c)
    _check_data(c)


def _check_rounds(c: Config) -> None:
    if c.queries * c.local_steps > MOST_DRAWS:
        raise ConfigError(
            f"queries × local-steps: at most {MOST_DRAWS} expected, got {c.queries * c.local_steps}"
        )
    if 0 < c.clients_per_round < c.min_clients:
        raise ConfigError(
            f"clients-per-round: 0 or at least min-clients = {c.min_clients} expected, "
            f"got {c.clients_per_round}: every round would be skipped"
        )


def _check_staleness(c: Config) -> None:
    """What must be as it was one round ago is not kept: parameters as a whole, guidance, debts."""
    reused = c.mode == "instruct" and c.guidance == "reuse"
    for key, value, holds in (
        ("downlink", c.downlink, c.downlink == "dense"),
        ("guidance", c.guidance, reused),
        ("error-feedback", "true", c.error_feedback),
        ("server-replica", "lazy", c.server_replica == "lazy"),
    ):
        if c.staleness and holds:
            raise ConfigError(
                f"staleness = {c.staleness} with {key} = {value}: it follows the newest round, and "
                "sites measure at the one before; use staleness = 0, or the key's default"
            )


def _check_aggregation(c: Config) -> None:
    if c.aggregation != "mean" and c.seed_schedule == "independent":
        raise ConfigError(
            f"aggregation {c.aggregation!r} compares sites direction by direction and needs "
            "seed-schedule 'shared'; with 'independent' each site has its own: use 'mean'"
        )
    asked = c.clients_per_round or c.num_clients
    if c.seed_schedule == "independent" and asked > MOST_GROUPS:
        raise ConfigError(
            f"seed-schedule 'independent' with {asked} sites a round: an entry takes "
            f"the numbers of at most {MOST_GROUPS}: set clients-per-round, or use 'shared'"
        )
    needed = needed_replies(c)
    if c.min_clients < needed:
        raise ConfigError(
            f"aggregation {c.aggregation!r} with malicious-clients = "
            f"{c.malicious_clients} needs min-clients >= {needed}, got {c.min_clients}"
        )
    if c.aggregation in COMPARING and c.mode == "instruct":
        raise ConfigError(
            f"aggregation {c.aggregation!r} keeps whole replies, but in mode 'instruct' a site's "
            "numbers and its gradient are combined apart: use mean, median or trimmed-mean"
        )


def _check_mode(c: Config) -> None:
    if c.local_steps > 1 and c.mode not in ("zo", "fedavg"):
        raise ConfigError(
            f"local-steps = {c.local_steps} with mode {c.mode!r}: a gradient is of one point; use "
            "local-steps = 1, or mode zo or fedavg"
        )
    if c.mode == "fedavg" and (c.optimizer != "sgd" or c.momentum):
        raise ConfigError(
            f"optimizer {c.optimizer!r} with momentum {c.momentum}: in mode 'fedavg' sites step by "
            "AdamW and parameters are averaged: use sgd, momentum 0"
        )
    guided = c.mode == "instruct" and c.guidance == "reuse"
    if c.parallel_queries > 1 and (guided or c.mode in ("fo", "fedavg")):
        raise ConfigError(
            f"parallel-queries = {c.parallel_queries} with mode {c.mode!r}"
            f"{', guidance reuse' * guided}: no round measures plain directions; use 1"
        )
    if c.instruct_directions == "masked" and c.mode == "instruct" and c.guidance == "reuse":
        raise ConfigError(
            "guidance 'reuse' with instruct-directions 'masked': between BP rounds a masked "
            "estimate would be as large as a gradient: use tilted, or guidance fresh"
        )
    if c.error_feedback and c.codec == "float32":
        raise ConfigError("error-feedback with codec float32: nothing is lost that could be owed")


def _check_model(c: Config) -> None:
    if c.mode == "fedavg" and c.dtype != "float32":
        raise ConfigError(
            f"dtype {c.dtype!r} with mode 'fedavg': the small steps of AdamW at the sites would be "
            "lost: use float32"
        )
    if c.parallel_queries > 1 and (c.task, c.dtype) != ("language-modelling", "float32"):
        raise ConfigError(
            f"parallel-queries = {c.parallel_queries} with task {c.task!r} and dtype {c.dtype!r}: "
            "only language modelling in float32 is batched over directions; use 1"
        )
    if c.task != "classification" and c.label_words:
        raise ConfigError(f"label-words {c.label_words!r} need task classification, got {c.task!r}")
    if c.scope != "lora" and c.lora_targets:
        raise ConfigError(f"lora-targets {c.lora_targets!r} need scope lora, got {c.scope!r}")


def _check_optimizer(c: Config) -> None:
    """A key of another optimizer would have no effect; with fedavg the sites' is AdamW."""
    adam = c.optimizer in ("adam", "mudamw") or c.mode == "fedavg"
    for key, set_, used in (
        ("momentum", c.momentum != 0, c.optimizer == "sgd"),
        ("cautious", c.cautious, c.optimizer == "mudamw"),
        ("beta1", c.beta1 != type(c).beta1, adam),
        ("beta2", c.beta2 != type(c).beta2, adam),
        ("adam-epsilon", c.adam_epsilon != type(c).adam_epsilon, adam),
    ):
        if set_ and not used:
            value = c.to_run_config()[key]
            raise ConfigError(f"{key} = {value!r} has no effect with optimizer {c.optimizer!r}")


def _check_merging(c: Config) -> None:
    """Batches of several sites are one only where the sites stand at one point, with one key."""
    alone = {
        "seed-schedule": c.seed_schedule == "independent",
        "mode": c.mode in ("fo", "fedavg") or (c.mode == "instruct" and c.guidance == "reuse"),
        "local-steps": c.local_steps > 1,
        "parallel-queries": c.parallel_queries > 1,
        "staleness": c.staleness > 0,
    }
    if c.merge_clients and any(alone.values()):
        (key, *_) = (key for key, holds in alone.items() if holds)
        raise ConfigError(
            f"merge-clients with {key} = {c.to_run_config()[key]!r}: sites that share forwards "
            "measure plain directions of shared keys, one step, one direction after the other"
        )


def _check_data(c: Config) -> None:
    if c.split_bp_zo_data and c.bp_dataset:
        raise ConfigError(
            f"split-bp-zo-data with bp-dataset = {c.bp_dataset!r}: these are apart already; use one"
        )
    if c.query_data == "fresh" and c.mode == "fedavg":
        raise ConfigError("query-data 'fresh' with mode 'fedavg': no query is spent there")


def needed_replies(c: Config) -> int:
    """How many replies the aggregation rule needs to tell liars from others."""
    least = {"bulyan": 4 * c.malicious_clients + 3, "krum": c.malicious_clients + 3}
    return least.get(c.aggregation.removeprefix("multi-"), 1)


def weight_of(text: str) -> float | None:
    """The number that ``bp-weight`` is; None where it is to be estimated (auto).

    Raises:
        ConfigError: neither a number from 0 to 1 nor auto.
    """
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(f"bp-weight: auto or a number from 0 to 1 expected, got {text!r}")
    return value
