"""Settings that a private run cannot have, and those of privacy that a plain run has no use for."""

from shared.aggregation import fewest_replies
from shared.base.errors import ConfigError
from shared.base.options import options_of
from shared.config.privacy_section import PrivacySettings
from shared.config.schema import Config, settings
from shared.modes.estimators import is_backpropagated
from shared.modes.mode import mode_of
from shared.modes.step_rule import PLAIN, step_rule_of
from shared.privacy.grid import check_rounding
from shared.sealed.committee import sums_needed

OF_ONE_EXAMPLE = ("loss", "accuracy", "margin")  # objectives that no other example enters
FEWEST_SITES = 3  # whose sum may be seen
ALWAYS = ("privacy", "site-loss")  # settings of the section that matter without privacy too


def check_privacy(c: Config) -> None:
    """Refuse what would send more than the noisy numbers, or promise what cannot be kept.

    Raises:
        ConfigError: says which settings, and what to set instead.
    """
    if not c.privacy.is_local:
        return _check_plain(c)
    mode, values = mode_of(c), c.to_run_config()
    for key, advice, holds in (
        ("mode", "zo: gradients are never private", not mode.measures or mode.has_interval),
        ("local-steps", "1: a second step would rest on numbers without noise",
         c.training.local_steps > 1),
        ("query-data", "same: one batch, one payment", c.zo.query_data != "same"),
        ("zo-batch-size", "a number above 0: batches are drawn by a secret", not c.zo.batch_size),
        ("parallel-queries", "1: losses of single examples are clipped", c.zo.parallel_queries > 1),
        ("merge-clients", "false: sites share no forward pass", c.federation.merge_clients),
        ("site-eval-fraction", "0: an outcome has no noise", c.evaluation.site_fraction > 0),
        ("estimator", "forward or two-point: backpropagation gives no gradient of each example",
         is_backpropagated(c)),
        ("objective", "one of loss, accuracy and margin: they are of one example",
         c.zo.objective not in OF_ONE_EXAMPLE),
    ):  # fmt: skip
        if holds:
            raise ConfigError(
                f"privacy {c.privacy.mode!r} with {key} = {values[key]!r}: use {advice}"
            )
    _check_numbers(c)
    check_rounding(c)
    _check_sealed(c)


def _check_numbers(c: Config) -> None:
    """There is a clip, and a noise or a promise that makes one."""
    if not c.privacy.clip:
        raise ConfigError(
            f"privacy-clip: a number above 0 expected with privacy {c.privacy.mode!r}, got 0; "
            "'dandelion privacy plan' measures the slopes of the server's own examples"
        )
    if not c.privacy.noise and not c.privacy.epsilon:
        raise ConfigError(
            f"privacy-epsilon or privacy-noise: one above 0 expected with {c.privacy.mode!r}; "
            "'dandelion privacy plan' shows what each costs"
        )


def _check_plain(c: Config) -> None:
    values = c.to_run_config()
    for each in options_of(PrivacySettings).values():
        if each.key not in ALWAYS and values[each.key] != each.default:
            raise ConfigError(
                f"{each.key} = {values[each.key]!r} without privacy 'local' or 'shared', which "
                "alone use it"
            )


def _check_sealed(c: Config) -> None:
    """Where only sums over sites can be seen, nothing may need the numbers of one site."""
    sealed, values = c.privacy, c.to_run_config()
    if not sealed.is_sealed:
        for key in (f"privacy-{name}" for name in ("committee", "colluders", "parts")):
            if values[key] != settings()[key].default:
                raise ConfigError(f"{key} = {values[key]!r} without privacy 'shared': set that")
        return
    sites = c.federation.clients_per_round or c.federation.num_clients
    for key, advice, holds in (
        ("seed-schedule", "shared: numbers along other directions have no sum",
         c.zo.seed_schedule != "shared"),
        ("downlink", "replay: sealed rounds are of numbers alone",
         c.federation.downlink == "dense"),
        ("step", "plain: rules for the rate compare the numbers of single sites",
         step_rule_of(c) != PLAIN),
        ("aggregation", "mean, or privacy-parts above 1: a rule compares sums of sites",
         c.federation.aggregation != "mean" and sealed.parts == 1),
    ):  # fmt: skip
        if holds:
            raise ConfigError(f"privacy 'shared' with {key} = {values[key]!r}: use {advice}")
    _check_parts(c, sites)
    if sealed.committee:
        sums_needed(sealed.committee, sealed.colluders)


def _check_parts(c: Config, sites: int) -> None:
    """Each sum is of several sites, and a rule that compares sums has enough of them."""
    parts, rule = c.privacy.parts, c.federation.aggregation
    if sites < FEWEST_SITES * parts:
        raise ConfigError(
            f"privacy 'shared' with {sites} sites in a round and privacy-parts = {parts}: "
            f"{FEWEST_SITES} sites in each sum expected; a sum of fewer tells too much of one"
        )
    if fewest_replies(c) > parts:
        raise ConfigError(
            f"aggregation {rule!r} compares the sums of parts and needs privacy-parts of at least "
            f"{fewest_replies(c)}, got {parts}"
        )
