"""Files of former ledger formats: they are opened, verified and resumed as the runs that they are.

A run is trained into a file with the tables of that format, and then read by what there is now.
"""

import re
from pathlib import Path

import pytest
from federation import config, federate, ledger_of, resumed, select
from hazards import Cut, cut_at

from dandelion.api.ledgers import verify_ledger
from server.ledger.ledger import Ledger
from server.ledger.records import TABLES

VERSION_5 = Path(__file__).with_name("version_5.sql").read_text()


def without(*tables):
    """The tables of now without some."""
    text = TABLES
    for table in tables:
        text, count = re.subn(rf"CREATE TABLE {table} .*?WITHOUT ROWID;\n", "", text, flags=re.S)
        assert count == 1
    return text


FORMATS = {
    "version 5": (5, VERSION_5),
    "version 6 of before lengths": (6, without("lengths")),
    "version 6 of before sums": (6, without("cohorts", "sums")),
}


@pytest.fixture(params=FORMATS)
def former_format(request, monkeypatch):
    """Within it ledgers are created in a former format; it returns how to end that."""
    version, tables = FORMATS[request.param]
    monkeypatch.setattr("server.ledger.ledger.VERSION", version)
    monkeypatch.setattr("server.ledger.ledger.TABLES", tables)
    return monkeypatch.undo


@pytest.mark.parametrize("mode", ["zo", "fo"])
def test_a_run_of_a_former_format_is_verified_and_goes_on(tmp_path, former_format, mode):
    changes = {"mode": mode, "num_rounds": 3, "bp_learning_rate": 0.1}
    chosen = config(tmp_path, **changes)
    with pytest.raises(Cut):
        federate(chosen, on_round=cut_at(2))
    former_format()
    with ledger_of(chosen) as ledger:
        names = {name for (name,) in select(ledger, "SELECT name FROM sqlite_master")}
        assert not {"lengths", "cohorts", "sums"} <= names
        verify_ledger(ledger)
        assert ledger.contributions(2)[0].length is None or "lengths" in names
        assert (ledger.sum_rows(1), ledger.cohort_rows(1, 0)) == ([], [])
    result = federate(resumed(chosen))
    assert result.digest == federate(config(tmp_path, "whole", **changes)).digest
    with ledger_of(chosen) as ledger:
        verify_ledger(ledger)
        assert select(ledger, "PRAGMA user_version")[0][0] in (5, 6)
        assert ledger.last_round == 3


def test_version_5_is_what_it_was(tmp_path, monkeypatch):
    """The file of the schema has the tables of now without those that came later."""
    monkeypatch.setattr("server.ledger.ledger.VERSION", 5)
    monkeypatch.setattr("server.ledger.ledger.TABLES", VERSION_5)
    path = tmp_path / "ledger.sqlite"
    header = {"run": b"r" * 16, "config": b"", "base": b"b" * 16, "code": b"c" * 16}
    Ledger.create(path, header).close()
    ledger = Ledger.open(path)
    assert select(ledger, "PRAGMA user_version") == [(5,)]
    names = {name for (name,) in select(ledger, "SELECT name FROM sqlite_master")}
    assert not names & {"lengths", "cohorts", "sums"}
    ledger.close()
