"""Signal and noise of a round: unbiased, with honest errors, in every readable file."""

import csv
import json
import re

import numpy as np
import pytest
from federation import config, federate, folder_of, ledger_of
from rich.console import Console

from dandelion.monitor import status, tensorboard
from server.ledger.records import SiteNumbers
from server.reporting.round_worth import (
    RoundWorth,
    verdict_of,
    worth_of,
    worth_of_round,
    worth_of_run,
)
from shared.config.schema import Config

EPS = 1e-3


def replies(rng, sites, queries, signal, noise, bend=0.0):
    """Numbers of sites whose slopes have a common part and one of their own."""
    common = np.sqrt(signal) * rng.standard_normal(queries)
    own = np.sqrt(noise) * rng.standard_normal((sites, queries))
    rows = 2 * EPS * (common + own) + bend
    return [SiteNumbers(10, row.astype(np.float32), None, None) for row in rows]


@pytest.mark.parametrize("estimator", ["two-point", "forward"])
def test_both_parts_are_estimated_without_bias_and_their_errors_are_honest(estimator):
    chosen = Config({"queries": 16, "eps": EPS, "estimator": estimator})
    rng, bend = np.random.default_rng(3), 7e-3 if estimator == "forward" else 0.0
    worths = [worth_of(chosen, replies(rng, 4, 16, 2.0, 3.0, bend)) for _ in range(800)]
    signals, noises = (np.array([getattr(w, x) for w in worths]) for x in ("signal", "noise"))
    assert signals.mean() == pytest.approx(2.0, abs=4 * signals.std() / 800**0.5)
    assert noises.mean() == pytest.approx(3.0, abs=4 * noises.std() / 800**0.5)
    errors = [np.sqrt(np.mean([getattr(w, x) ** 2 for w in worths])) for x in
              ("signal_error", "noise_error")]  # fmt: skip
    assert errors[0] == pytest.approx(signals.std(), rel=0.15)
    assert errors[1] == pytest.approx(noises.std(), rel=0.15)


@pytest.mark.parametrize(
    ("settings", "sites"),
    [
        ({"seed-schedule": "independent"}, 3),
        ({"mode": "instruct"}, 3),
        ({}, 1),
        ({"mode": "fo"}, 3),
    ],
)
def test_nothing_is_told_of_sites_that_cannot_be_compared(settings, sites):
    chosen = Config({"queries": 4, "eps": EPS, **settings})
    assert worth_of(chosen, replies(np.random.default_rng(1), sites, 4, 1.0, 1.0)) is None


@pytest.mark.parametrize(
    ("worth", "batch", "words"),
    [
        (RoundWorth(1.0, 0.1, 0.2, 0.1, 4), 4, "17% .* more queries would pay, or seed-schedule"),
        (RoundWorth(1.0, 0.1, 0.2, 0.1, 4), 4, "3.5 times as far"),
        (RoundWorth(1.0, 0.1, 40.0, 0.1, 4), 4, "10.0 times the signal: a larger zo-batch-size"),
        (RoundWorth(1.0, 0.1, 40.0, 0.1, 4), 0, "data differ .*more sites in a round would pay"),
        (RoundWorth(0.1, 0.1, 1.0, 0.1, 4), 4, "No common signal"),
        (RoundWorth(1.0, 0.1, 7.0, 0.1, 2), 4, "3.5 times the signal"),
        (RoundWorth(1.0, 0.1, 3.9, 0.1, 4), 4, "more queries would pay, or .*1.6 times"),
    ],
)
def test_a_verdict_names_what_limits_a_round(worth, batch, words):
    assert re.search(words, verdict_of(worth, Config({"zo-batch-size": batch})))


def test_a_run_shows_it_everywhere(tmp_path):
    chosen = config(tmp_path, queries=4, num_rounds=3)
    outcome = federate(chosen)
    folder = folder_of(chosen)
    with ledger_of(chosen) as ledger:
        rounds = [worth_of_round(chosen, ledger, round_) for round_ in (1, 2, 3)]
        run = worth_of_run(chosen, ledger)
    assert run.signal == pytest.approx(np.mean([w.signal for w in rounds]))
    assert run.signal_error == pytest.approx(
        np.sqrt(np.sum([w.signal_error**2 for w in rounds])) / 3
    )
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, worth in zip(rows, rounds, strict=True):
        assert float(row["signal"]) == pytest.approx(worth.signal, rel=1e-6)
        assert float(row["site noise error"]) == pytest.approx(worth.noise_error, rel=1e-6)
    assert outcome.summary["verdict"] == verdict_of(run, chosen)
    console = Console(width=400, record=True)
    console.print(status.render(folder))
    assert verdict_of(run, chosen) in console.export_text()
    data = tensorboard.write(folder).read_bytes()
    assert data.count(b"round/signal") == data.count(b"round/site noise") == 3
    json.dumps(outcome.summary)


def test_rounds_in_which_nothing_differed_have_a_verdict_of_their_own():
    assert "Every slope is zero" in verdict_of(RoundWorth(0.0, 0.0, 0.0, 0.0, 3.0), Config())
