"""Settings that a private run cannot have, and those of privacy that a plain run has no use for."""

from shared.base.errors import ConfigError
from shared.base.options import options_of
from shared.config.privacy_section import PrivacySettings
from shared.config.schema import Config
from shared.modes.mode import mode_of
from shared.modes.step_rule import compares
from shared.privacy.grid import check_rounding

OF_ONE_EXAMPLE = ("loss", "accuracy", "margin")  # objectives that no other example enters
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
        ("objective", "one of loss, accuracy and margin: they are of one example",
         c.zo.objective not in OF_ONE_EXAMPLE),
        ("step", "plain or normalised: falls of the loss are not sent", compares(c)),
    ):  # fmt: skip
        if holds:
            raise ConfigError(f"privacy 'local' with {key} = {values[key]!r}: use {advice}")
    _check_numbers(c)
    check_rounding(c)


def _check_numbers(c: Config) -> None:
    """There is a clip, and a noise or a promise that makes one."""
    if not c.privacy.clip:
        raise ConfigError(
            "privacy-clip: a number above 0 expected with privacy 'local', got 0; 'dandelion "
            "privacy plan' measures the slopes of the server's own examples"
        )
    if not c.privacy.noise and not c.privacy.epsilon:
        raise ConfigError(
            "privacy-epsilon or privacy-noise: one above 0 expected with privacy 'local'; "
            "'dandelion privacy plan' shows what each costs"
        )


def _check_plain(c: Config) -> None:
    if compares(c) and not c.privacy.site_loss:
        raise ConfigError("site-loss = false with step 'auto', which rests on losses: use plain")
    values = c.to_run_config()
    for each in options_of(PrivacySettings).values():
        if each.key not in ALWAYS and values[each.key] != each.default:
            raise ConfigError(
                f"{each.key} = {values[each.key]!r} without privacy 'local', which alone uses it"
            )
