"""Scopes are compared in equal time, and the one that brings most is named."""

import json
import math

import numpy as np
import pytest
from tiny_reviews import CLASSES, folders, reviews  # noqa: F401  (fixtures)
from typer.testing import CliRunner

from dandelion.cli.app import app
from server.preflight.scope_table import ScopeTable, compare_scopes
from server.preflight.scope_trial import ScopeRow, first_fall
from shared.base.errors import ConfigError
from shared.training.validate import configure

SHORT = {**CLASSES, "threads": 1, "eval_blocks": 24, "eval_fraction": 0.4, "num_clients": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))


def row(scope, gain, error=0.01, parameters=10, **changes):
    values = {"settings": {"scope": scope}, "signal": 1.0, "curvature": 1.0, "fall_per_pass": 0.1,
              "seconds_per_pass": 0.1, "preparation": 0.5, "rounds": 4, "passes": 8,
              "seconds": 2.0, "loss": (1.0, 1.0 - gain), "accuracy": None}  # fmt: skip
    return ScopeRow(scope, parameters=parameters, gain=gain, gain_error=error, **values | changes)


def test_a_readout_is_named_where_words_tell_classes_apart(folders, tmp_path):
    table = compare_scopes(configure({**SHORT, "model": folders["words"]}), 0.3)
    rows = {each.scope: each for each in table.rows}
    assert {"prior", "words last", "words mean", "last:2", "full"} <= rows.keys()
    assert {"head mean"} <= table.refused.keys()
    assert rows["words mean"].pays
    assert rows["words mean"].accuracy[1] > rows["words mean"].accuracy[0]
    assert rows["prior"].gain < rows["words mean"].gain
    assert table.best.scope.startswith("words")
    assert table.best.settings["scope"] == "words"
    written = json.loads(table.write(tmp_path).read_text())
    assert written["best"] == table.best.settings
    assert {each["scope"] for each in written["scopes"]} == rows.keys()


@pytest.mark.slow
def test_what_is_named_is_measured_again_by_a_run_of_its_settings(folders):
    """The settings that a row names make a run of so many trained numbers."""
    from shared.training.oracle import Oracle
    from shared.training.server_choices import resolve_choices

    config = configure({**SHORT, "model": folders["head"]})
    table = compare_scopes(config, 0.1)
    assert {"head mean", "head first", "head", "bias"} <= {each.scope for each in table.rows}
    for each in table.rows:
        chosen = configure({**SHORT, "model": folders["head"], **each.settings})
        oracle = Oracle.of(resolve_choices(chosen))
        assert oracle.replica.model.layout.parameters == each.parameters


def test_the_best_is_the_smallest_of_those_that_cannot_be_told_apart():
    small, large = row("small", 0.10, parameters=5), row("large", 0.105, parameters=50)
    chance = row("chance", 0.015, parameters=1)
    table = ScopeTable((chance, large, small), {}, rounds=60, examples=6)
    assert not chance.pays
    assert table.best is small
    assert ScopeTable((small, row("far", 0.2)), {}, 1, 1).best.scope == "far"
    assert ScopeTable((chance,), {}, 1, 1).best is None
    assert table.minutes(small) == (0.5 * 6 + 60 * 2.0 / 4) / 60


def test_the_first_fall_is_that_of_a_quadratic():
    """For L = gθ + T/2d·|θ|² and equal batches: G²·q / 2uT, with u = G."""
    slopes = np.array([[1.0, 1.0], [-2.0, -2.0]])
    energy = 2.5
    assert math.isclose(first_fall(slopes, 4.0, 8), energy**2 * 8 / (2 * energy * 4.0))
    assert first_fall(np.array([[1.0, -1.0]]), 4.0, 8) == 0.0  # batches with nothing in common
    assert first_fall(slopes, -1.0, 8) == 0.0


def test_too_few_examples_are_refused_by_number(folders):
    config = configure({**SHORT, "model": folders["words"], "eval_blocks": 4})
    with pytest.raises(ConfigError, match="8 held-out examples or more expected, got 4"):
        compare_scopes(config, 0.1)


def test_the_command_prints_json_and_says_what_to_train(folders, tmp_path):
    settings = {**SHORT, "model": folders["words"], "output_dir": tmp_path, "run_name": "tried"}
    words = [w for k, v in settings.items() for w in ("--set", f"{k.replace('_', '-')}={v}")]
    done = CliRunner().invoke(app, ["preflight", "--scopes", "0.2", "--json", *words])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((tmp_path / "tried" / "scopes.json").read_text())
