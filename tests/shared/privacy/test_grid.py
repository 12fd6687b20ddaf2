"""Clip and grid: no unit moves a sum by more than the sensitivity, whatever its numbers are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_config import small_config

from shared.base.errors import ConfigError
from shared.privacy.grid import CLIP_STEPS, SENSITIVITY, from_grid, noise_steps, to_grid

ANY = st.floats(allow_nan=True, allow_infinity=True)
SOUND = st.floats(-1e6, 1e6)


@given(arrays(np.float64, (3, 4), elements=ANY), st.floats(1e-9, 1e9))
def test_no_unit_is_longer_than_the_clip(numbers, clip):
    steps = to_grid(numbers, clip)
    assert all(sum(int(x) ** 2 for x in unit) <= CLIP_STEPS**2 for unit in steps.T)


@given(arrays(np.float64, (3, 4), elements=SOUND), st.floats(1e-3, 1e6))
def test_numbers_shrink_and_keep_their_sign(numbers, clip):
    steps = to_grid(numbers, clip)
    shown = steps * (clip / CLIP_STEPS)
    assert (np.abs(shown) <= np.abs(numbers) * (1 + 1e-12)).all()
    assert (shown * numbers >= 0).all()
    small = np.sqrt((numbers**2).sum(0)) <= clip * (1 - 1e-9)
    assert (np.abs(shown - numbers)[:, small] <= 1.001 * clip / CLIP_STEPS).all()


def test_a_long_unit_keeps_its_direction():
    steps = to_grid(np.array([[30.0], [40.0]]), 5.0)
    assert np.allclose(steps[:, 0] / CLIP_STEPS, [0.6, 0.8], atol=1e-5)


def test_a_unit_that_is_not_finite_counts_as_zero():
    assert not to_grid(np.array([[np.nan], [1.0]]), 1.0).any()


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf")])
def test_a_clip_of_nothing_is_refused(clip):
    with pytest.raises(ConfigError, match="privacy-clip: a number above 0"):
        to_grid(np.zeros((1, 1)), clip)


def test_noise_is_of_the_sensitivity_and_rounded_up():
    assert noise_steps(1.0) == SENSITIVITY
    assert noise_steps(1.0000001) == SENSITIVITY + 1


def test_what_is_sent_is_a_mean():
    assert from_grid(np.array([CLIP_STEPS, -CLIP_STEPS // 2]), 3.0, 4).tolist() == [0.75, -0.375]


def test_a_clip_within_the_rounding_of_losses_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="rounded too coarsely"):
        small_config(
            tmp_path, privacy="local", privacy_noise=1.0, privacy_clip=1e-3, zo_batch_size=64
        )
