"""Rules over the sums of parts: a site that lies about its own numbers ruins one part alone.

No share can show such a lie, and the server sees no site's numbers: it compares the sums of parts.
"""

import numpy as np
import pytest
from federation import federate, ledger_of
from sealed_federation import plain_steps, sealed_config, sealed_home  # noqa: F401  (fixtures)

from client.privacy.noisy_numbers import NoisyNumbers
from dandelion.api.ledgers import verify_ledger
from shared.aggregation import rule_of
from shared.privacy.grid import from_grid

WILD = 1 << 45  # grid steps; a clip is 2**20
RULES = {
    "median": (3, {}),
    "trimmed-mean": (3, {"trim_fraction": 0.34}),
    "krum": (4, {}),
    "multi-krum": (4, {}),
}


@pytest.fixture
def hostile(monkeypatch):
    """Site 4 adds WILD to each of its numbers, and seals them as everybody does."""
    real = NoisyNumbers.measure_steps

    def measure_steps(self, *arguments):
        steps = real(self, *arguments)
        return steps + WILD if self.account.site == "4" else steps

    monkeypatch.setattr(NoisyNumbers, "measure_steps", measure_steps)


def means_of(config, cohort, steps):
    """The mean differences of each part, from what its sites have sealed."""
    clip = config.privacy.clip_of_differences(config.zo.eps, config.zo.queries)
    means = []
    for part in range(config.privacy.parts):
        slots = [row.slot for row in cohort if row.part == part]
        assert len(slots) == 3
        total = np.sum([steps[1, 0, slot] for slot in slots], axis=0)
        means.append(from_grid(total, clip, 3 * config.zo.batch_size))
    return np.array(means)


@pytest.mark.parametrize("rule", RULES)
def test_a_hostile_site_ruins_one_part_and_not_the_entry(tmp_path, plain_steps, hostile, rule):
    parts, options = RULES[rule]
    config = sealed_config(
        tmp_path, sites=3 * parts, num_rounds=1, privacy_parts=parts, aggregation=rule,
        min_replies=3 * parts, estimator="two-point", zo_batch_size=1, **options,
    )  # fmt: skip
    federate(config)
    with ledger_of(config) as ledger:
        means = means_of(config, ledger.cohort_rows(1, 0), plain_steps)
        entry = ledger.entry(1).slots[0].differences
        assert verify_ledger(ledger).sums == 1
    expected = rule_of(config)(means.astype(np.float64), np.full(parts, 3.0))
    assert entry.tobytes() == expected.astype(np.float32).tobytes()
    lied = np.abs(means).max(axis=1) > 1000 * np.abs(entry).max()
    assert lied.sum() == 1  # the part of the hostile site, which is nowhere in the entry


def test_under_the_mean_a_hostile_site_is_in_the_entry(tmp_path, plain_steps, hostile):
    """What the rules are for: one sum of all sites has no defence."""
    config = sealed_config(tmp_path, sites=5, num_rounds=1, estimator="two-point")
    federate(config)
    clip = config.privacy.clip_of_differences(config.zo.eps, config.zo.queries)
    lie = from_grid(np.array([WILD]), clip, 5 * config.zo.batch_size)[0]
    with ledger_of(config) as ledger:
        assert np.abs(ledger.entry(1).slots[0].differences).min() > 0.9 * lie


def test_multi_krum_chooses_among_parts_and_not_among_sites(tmp_path):
    """Twelve sites in four parts: one vector of four is chosen, not nine of twelve."""
    changes = {"sites": 12, "privacy_parts": 4, "aggregation": "multi-krum", "min_replies": 12}
    assert rule_of(sealed_config(tmp_path, **changes)).min_replies == 4
