"""A run of before a setting existed is read, verified and resumed as the run that it was."""

import tomllib

import pytest
from federation import config, federate, folder_of, ledger_of, resumed

from dandelion.settings.gather import gather
from server.ledger.ledger import Ledger
from server.ledger.run_folder import read_config
from shared.config.schema import FORMER, to_toml, with_former_defaults


@pytest.fixture
def former(tmp_path):
    """A finished run of one round whose record lacks the newer settings."""
    chosen = config(tmp_path, num_rounds=1, **{k.replace("-", "_"): v for k, v in FORMER.items()})
    federate(chosen)
    folder = folder_of(chosen)
    path = folder / "ledger.sqlite"
    with ledger_of(chosen) as ledger:
        header = {key: ledger.header(key) for key in ("run", "config", "base", "code")}
    settings = tomllib.loads(header["config"].decode())
    old = to_toml({key: value for key, value in settings.items() if key not in FORMER}).encode()
    path.rename(folder / "whole.sqlite")
    Ledger.create(path, header | {"config": old}).close()
    (folder / "config.toml").write_bytes(old)
    return chosen


def test_what_is_not_recorded_is_what_the_run_did(former):
    with ledger_of(former) as ledger:
        read = read_config(ledger).to_run_config()
    assert {key: read[key] for key in FORMER} == FORMER
    gathered = gather(None, [], folder_of(former)).to_run_config()
    assert {key: gathered[key] for key in FORMER} == FORMER


def test_such_a_run_goes_on_to_the_digest_that_it_had(former, tmp_path):
    former_defaults = {key.replace("-", "_"): value for key, value in FORMER.items()}
    whole = federate(config(tmp_path, "whole", num_rounds=1, **former_defaults))
    assert federate(resumed(former)).digest == whole.digest


@pytest.mark.parametrize(
    ("settings", "estimator"),
    [
        ({}, "two-point"),
        ({"scope": "words"}, "exact"),
        ({"scope": "head", "features": "mean"}, "exact"),
        ({"scope": "words", "objective": "accuracy"}, "two-point"),
    ],
    ids=str,
)
def test_a_recorded_auto_is_what_it_was_then(settings, estimator):
    assert with_former_defaults({**settings, "estimator": "auto"})["estimator"] == estimator


def test_a_run_records_what_auto_stood_for(tmp_path):
    chosen = config(tmp_path, num_rounds=1)
    assert chosen.zo.estimator == "auto"
    federate(chosen)
    with ledger_of(chosen) as ledger:
        assert read_config(ledger).zo.estimator == "forward"
    assert 'estimator = "forward"' in (folder_of(chosen) / "config.toml").read_text()
