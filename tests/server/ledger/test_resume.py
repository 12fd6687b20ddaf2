"""A run goes on where it was cut off, as the same run, or says why it cannot."""

import csv

import pytest
from federation import Network, Processes, config, federate, folder_of, ledger_of, resumed
from hazards import Cut, cut_at

from dandelion.monitor.status import rounds_of
from dandelion.settings.gather import read_toml
from server.ledger.run_folder import open_run
from shared.base.errors import ConfigError, DivergedError, LedgerError, StalledError

CHANGES = {"num_rounds": 6, "snapshot_interval": 2, "optimizer": "adam", "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return federate(config(tmp_path_factory.mktemp("whole"), **CHANGES))


@pytest.mark.parametrize("keep", [True, False], ids=["sites stay", "sites start again"])
@pytest.mark.parametrize("last", [0, 1, 2, 5, 6])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(tmp_path, whole, last, keep):
    chosen, nodes = config(tmp_path, **CHANGES), Processes()
    with pytest.raises(Cut):
        federate(chosen, Network(chosen, nodes), cut_at(last))
    again = resumed(chosen)
    outcome = federate(again, Network(again, nodes if keep else Processes()))
    assert outcome.digest == whole.digest
    assert outcome.entries == whole.entries
    for key in ("rounds", "clients", "refusals", "skipped_rounds", "evaluation_loss_last"):
        assert outcome.summary[key] == whole.summary[key]
    with (folder_of(chosen) / "metrics.csv").open() as file:
        assert [row["round"] for row in csv.DictReader(file)] == ["1", "2", "3", "4", "5", "6"]


def test_a_finished_run_is_resumed_to_more_rounds_or_to_none(tmp_path, whole):
    chosen = config(tmp_path, **CHANGES | {"num_rounds": 4})
    short = federate(chosen)
    assert federate(resumed(chosen)).digest == short.digest
    assert federate(resumed(chosen, num_rounds=6)).digest == whole.digest


@pytest.mark.parametrize(
    "changed", [{"queries": 4}, {"seed": 2}, {"learning_rate": 0.5, "optimizer": "mudamw"}], ids=str
)
def test_a_run_cannot_be_resumed_as_another(tmp_path, changed):
    chosen = config(tmp_path, **CHANGES)
    with pytest.raises(Cut):
        federate(chosen, on_round=cut_at(1))
    with pytest.raises(ConfigError, match="cannot go on as another run") as error:
        federate(resumed(chosen, **changed))
    for key in changed:
        assert f"{key.replace('_', '-')} = " in str(error.value)
    assert "(recorded: " in str(error.value)


def test_what_does_not_change_the_run_may_be_changed(tmp_path, whole):
    chosen = config(tmp_path, **CHANGES)
    with pytest.raises(Cut):
        federate(chosen, on_round=cut_at(3))
    other = {"snapshot_interval": 1, "catch_up": "snapshot", "eval_interval": 1}
    assert federate(resumed(chosen, round_timeout=9.0, **other)).digest == whole.digest


def test_the_files_of_a_run_say_how_it_was_resumed_last(tmp_path):
    chosen = config(tmp_path, **CHANGES | {"num_rounds": 2})
    federate(chosen)
    federate(resumed(chosen, num_rounds=3))
    recorded = read_toml(folder_of(chosen) / "config.toml")
    assert (recorded["num-rounds"], recorded["resume"], recorded["queries"]) == (3, "", 2)
    with ledger_of(chosen) as ledger:
        assert rounds_of(folder_of(chosen), ledger) == 3
        (folder_of(chosen) / "config.toml").unlink()
        assert rounds_of(folder_of(chosen), ledger) == 2  # as it was begun


def test_there_must_be_a_run_to_resume(tmp_path):
    with pytest.raises(ConfigError, match=r"no run to resume; ledger\.sqlite expected"):
        federate(resumed(config(tmp_path)))
    assert not (tmp_path / "run").exists()


def test_a_new_run_is_refused_in_a_folder_that_has_a_run(tmp_path):
    chosen = config(tmp_path, num_rounds=1)
    federate(chosen)
    with pytest.raises(ConfigError, match="a run is there; resume it"):
        federate(chosen)


def test_a_run_that_stopped_before_it_had_a_ledger_starts_again(tmp_path, monkeypatch):
    chosen = config(tmp_path, num_rounds=1)

    def cut(*_):
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr("server.ledger.ledger.Ledger.create", cut)
        with pytest.raises(Cut):
            federate(chosen)
    assert (tmp_path / "run" / "config.toml").exists()
    assert federate(chosen).summary["rounds"] == 1


def test_a_damaged_ledger_is_named_and_nothing_is_trained(tmp_path):
    chosen = config(tmp_path)
    federate(chosen)
    path = folder_of(chosen) / "ledger.sqlite"
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(LedgerError, match=r"run/ledger\.sqlite: "):
        federate(resumed(chosen, num_rounds=9))
    assert not list(path.parent.glob("*-wal"))  # the connection is closed


def test_a_digest_other_than_the_recorded_one_stops_the_run(tmp_path):
    """Another base model or a kernel with other bits: no round is better than a wrong one."""
    chosen = config(tmp_path)
    federate(chosen)
    with ledger_of(chosen) as ledger:
        ledger._database.write("UPDATE digests SET digest = zeroblob(16) WHERE round = 3")
    with pytest.raises(DivergedError, match=f"round 3: digest {'00' * 16} expected"):
        federate(resumed(chosen, num_rounds=9))


def test_the_lock_is_free_again_when_a_run_ends_badly(tmp_path):
    chosen = config(tmp_path, min_clients=9)
    with pytest.raises(StalledError):
        federate(chosen)
    with open_run(resumed(chosen)) as run:
        assert run.ledger.last_round == 0
