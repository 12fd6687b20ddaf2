"""Settings of what a site measures that cannot work together: estimator, batches, step, merging."""

from shared.base.errors import ConfigError
from shared.config.schema import Config
from shared.modes.batches import EPOCHS
from shared.modes.estimators import (
    EXACT,
    FORWARD,
    estimator_of,
    is_backpropagated,
    refusal_of_forward,
)
from shared.modes.mode import mode_of
from shared.modes.step_rule import NORMALISED, why_not_normalised


def check_measuring(c: Config) -> None:
    """Refuse what cannot work.

    Raises:
        ConfigError: says which settings, and what to set instead.
    """
    _check_estimator(c)
    _check_batches(c)
    _check_batch_order(c)
    _check_step(c)
    _check_merging(c)


def _check_estimator(c: Config) -> None:
    if c.zo.estimator == FORWARD and mode_of(c).measures and (reason := refusal_of_forward(c)):
        raise ConfigError(f"estimator 'forward' with {reason}: use two-point")
    if estimator_of(c) == EXACT:
        _check_exact(c)


def _check_exact(c: Config) -> None:
    """Exact slopes leave nothing to those who share, batch or guide perturbed evaluations."""
    other = {
        "parallel-queries": c.zo.parallel_queries > 1,
        "merge-clients": c.federation.merge_clients,
        "query-data": c.zo.query_data == "fresh",
    }
    if any(other.values()):
        key = next(key for key, holds in other.items() if holds)
        raise ConfigError(
            f"{key} = {c.to_run_config()[key]!r} with {_why_exact(c)}: exact slopes need no "
            "perturbed evaluation that could be shared; use its default"
        )
    if mode_of(c).leans_on_gradient:
        raise ConfigError(
            f"mode {c.training.mode!r} with {_why_exact(c)}: the exact gradient costs as much as "
            "its slopes; use mode zo or fo, or estimator two-point"
        )


def _why_exact(c: Config) -> str:
    """The setting that makes slopes exact."""
    if is_backpropagated(c):
        return f"estimator {EXACT!r}"
    return f"scope '{c.model.scope}{' with features' * bool(c.model.features)}'"


def _check_batches(c: Config) -> None:
    if not c.zo.batch_size and c.zo.query_data != "same":
        raise ConfigError(
            f"zo-batch-size = 0 with query-data {c.zo.query_data!r}: every query sees all of a "
            "site's examples already: use same"
        )


def _check_batch_order(c: Config) -> None:
    """Epochs need batches to be made of, and a private round's are secret draws of the site."""
    if c.data.batch_order != EPOCHS:
        return
    if c.privacy.is_local:
        raise ConfigError(
            f"batch-order 'epochs' with privacy {c.privacy.mode!r}: its promise counts on batches "
            "that the site draws in secret: use drawn"
        )
    mode = mode_of(c)
    sizes = {"zo-batch-size": c.zo.batch_size} if mode.measures else {}
    if mode.always_backpropagates or mode.has_interval:
        sizes["bp-batch-size"] = c.bp.batch_size
    if not any(sizes.values()):
        raise ConfigError(
            f"batch-order 'epochs' with {', '.join(f'{key} = 0' for key in sizes)}: every step "
            "sees all of a site's examples, so there is no order: use drawn"
        )


def _check_step(c: Config) -> None:
    if c.optimizer.step == NORMALISED and (reason := why_not_normalised(c)):
        raise ConfigError(
            f"step 'normalised' with {reason}: use plain, or auto, which is plain here"
        )


def _check_merging(c: Config) -> None:
    """Batches of several sites are one only if the sites stand at one point, with one key."""
    mode = mode_of(c)
    alone = {
        "seed-schedule": c.zo.seed_schedule == "independent",
        "mode": not mode.measures or mode.keeps_guidance(c),
        "local-steps": c.training.local_steps > 1,
        "parallel-queries": c.zo.parallel_queries > 1,
        "staleness": c.federation.staleness > 0,
    }
    if c.federation.merge_clients and any(alone.values()):
        key = next(key for key, holds in alone.items() if holds)
        raise ConfigError(
            f"merge-clients with {key} = {c.to_run_config()[key]!r}: sites that share forwards "
            "measure plain directions of shared keys, one step, one direction after the other"
        )
