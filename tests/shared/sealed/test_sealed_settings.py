"""Settings that a run with sealed sums cannot have are refused before the first message."""

import pytest
from small_config import small_config

from shared.base.errors import ConfigError

SEALED = {"privacy": "shared", "privacy_noise": 1.0, "privacy_clip": 40.0}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed_schedule": "independent"}, "seed-schedule = 'independent': use shared"),
        ({"downlink": "dense"}, "downlink = 'dense': use replay"),
        ({"step": "normalised"}, "step = 'normalised': use plain"),
        ({"mode": "fo"}, "mode = 'fo': use zo"),
        ({"mode": "instruct"}, "mode = 'instruct': use zo"),
        ({"local_steps": 2}, "local-steps = 2: use 1"),
        ({"merge_clients": True}, "merge-clients = True: use false"),
        ({"site_eval_fraction": 0.1}, "site-eval-fraction = 0.1: use 0"),
        ({"aggregation": "median"}, "aggregation = 'median': use mean, or privacy-parts"),
        ({"aggregation": "trimmed-mean"}, "aggregation = 'trimmed-mean': use mean"),
        ({"num_clients": 2}, "2 sites in a round and privacy-parts = 1: 3 sites in each sum"),
        ({"num_clients": 8, "privacy_parts": 3}, "8 sites in a round and privacy-parts = 3"),
        ({"num_clients": 9, "clients_per_round": 2}, "2 sites in a round"),
        ({"privacy_committee": 3, "privacy_colluders": 3}, "privacy-colluders = 3 of a committee"),
        ({"privacy_clip": 0.0}, "privacy-clip: a number above 0 expected with privacy 'shared'"),
        ({"privacy_noise": 0.0}, "privacy-epsilon or privacy-noise: one above 0 expected"),
        ({"aggregation": "krum", "num_clients": 9, "privacy_parts": 3, "min_replies": 9},
         "needs privacy-parts of at least 4, got 3"),
    ],
    ids=str,
)  # fmt: skip
def test_what_needs_the_numbers_of_single_sites_is_refused(tmp_path, change, text):
    with pytest.raises(ConfigError) as refused:
        small_config(tmp_path, **{**SEALED, **change})
    assert text in str(refused.value)


@pytest.mark.parametrize("key", ["privacy-committee", "privacy-colluders", "privacy-parts"])
def test_settings_of_sealed_sums_need_them(tmp_path, key):
    for mode in ({}, {**SEALED, "privacy": "local"}):
        with pytest.raises(ConfigError, match=f"{key} = 3 without privacy"):
            small_config(tmp_path, **mode, **{key: 3})


def test_a_sealed_run_in_parts_may_have_a_rule(tmp_path):
    config = small_config(
        tmp_path, **SEALED, num_clients=9, privacy_parts=3, aggregation="median", staleness=1
    )
    assert config.privacy.is_sealed
    assert config.privacy.is_local  # its sites add their own noise
