"""Sealed sums between real processes over TLS: the walk-through, and what is killed on the way.

The commands are those of docs/how-to/sealed-sums.md, typed at a server and four hospitals. Batches,
noise and shares follow from secrets, so a twin in this process must end with the same digest.
"""

import re
import sqlite3
from contextlib import closing

import pytest
from hazards import Chaos
from machines import ROOT, Federation, descendants, destroy, last_round, named, rows
from processes import until
from sealed_nodes import NAMES, SMALL, make_notes, run_twin, typed_settings, write_roster

from dandelion.api.ledgers import verify_ledger
from server.ledger.ledger import Ledger

pytestmark = pytest.mark.deployment
PAGE = ROOT / "docs" / "how-to" / "sealed-sums.md"
WAIT_S = 1200
COHORTS = "SELECT round, attempt, slot, request FROM cohorts ORDER BY round, attempt, slot"
NEWEST = "SELECT coalesce(max(round), 0) FROM cohorts"


class Hospitals:
    """Four sites with notes, secrets and rosters of their own, joined to a server."""

    def __init__(self, folder):
        pytest.importorskip("dp_accounting")
        self.federation = Federation(folder)
        self.homes = {name: folder / name for name in NAMES}
        self.notes = {name: make_notes(folder / f"notes-{name}") for name in NAMES}
        self.roster = write_roster(folder / "roster.toml", self.homes)

    def join(self, name, roster=None):
        own = typed_settings(PAGE, "dandelion client join")
        own |= {"site": name, "data": self.notes[name], "roster": roster or self.roster}
        words = (word for key, value in own.items() for word in ("--set", f"{key}={value}"))
        self.federation.join(name, *words)

    def start(self, name, **changes):
        """Type the page's run, small."""
        settings = typed_settings(PAGE, "dandelion server run") | SMALL | {"dataset": "topics"}
        more = {key.replace("_", "-"): value for key, value in changes.items()}
        return self.federation.run(name, {**settings, **more})

    def run(self, name, **changes):
        code = self.start(name, **changes).wait(WAIT_S)
        assert code == 0, self.federation.output_of(name)

    def twin(self, folder, name):
        """The same run in this process, with the hospitals' own secrets and those who answered."""
        run = self.federation.runs / name
        nodes = [
            {"site": name, "data": str(self.notes[name]), "roster": str(self.roster),
             "privacy-home": str(self.homes[name] / "privacy")}
            for name in NAMES
        ]  # fmt: skip
        there = set(rows(run, "SELECT round, site FROM contributions"))
        lost = {
            (round_, number)
            for round_ in range(1, last_round(run) + 1)
            for number, site in enumerate(NAMES)
            if (round_, site) not in there
        }
        if not lost:
            return run_twin(folder, run, nodes)
        return run_twin(folder, run, nodes, grid=lambda config: Chaos(config, lost))


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    started = Hospitals(tmp_path_factory.mktemp("hospitals"))
    try:
        started.federation.up()
        for name in NAMES:
            started.join(name)
        yield started
    finally:
        started.federation.end()


def test_a_sealed_run_over_tls_has_the_digest_of_the_local_engine(hospitals, tmp_path):
    hospitals.run("plain", num_rounds=2)
    folder = hospitals.federation.runs / "plain"
    assert hospitals.federation.digest("plain") == hospitals.twin(tmp_path, "plain").digest
    assert rows(folder, "SELECT DISTINCT length(differences) FROM contributions") == [(0,)]
    assert rows(folder, "SELECT count(*) FROM refusals WHERE reason != 'introduction'") == [(0,)]
    ledger = Ledger.open(folder / "ledger.sqlite")
    assert verify_ledger(ledger).sums == 2
    ledger.close()


@pytest.mark.parametrize("staleness", [0, 1])
def test_what_is_killed_changes_no_bit(hospitals, tmp_path, staleness):
    """A member's guard, and the server after a cohort is committed and before its entry is."""
    federation, name = hospitals.federation, f"killed-{staleness}"
    folder = federation.runs / name
    hospitals.start(name, num_rounds=5, staleness=staleness, min_replies=4)
    until(lambda: last_round(folder) >= 1, "round 1")
    destroy(federation.workers("ward-2"))
    before = kill_between_the_steps(federation, folder)
    assert federation.resume(name).wait(WAIT_S) == 0, federation.output_of(name)
    assert set(before) <= set(rows(folder, COHORTS))  # no second cohort for any attempt
    assert federation.digest(name) == hospitals.twin(tmp_path, name).digest


def kill_between_the_steps(federation, folder):
    """SIGKILL the server once a cohort is there without its entry; return the cohorts so far.

    The ledger itself makes an entry of a later round wait: a join of its schema that has no end.
    """
    later = last_round(folder) + 2
    schema = ", ".join(f"sqlite_master AS s{number}" for number in range(12))
    change_schema(
        folder,
        f"CREATE TRIGGER wait BEFORE INSERT ON entries WHEN new.round >= {later} "
        f"BEGIN SELECT count(*) FROM {schema}; END",
    )
    until(lambda: rows(folder, NEWEST)[0][0] >= later, "a cohort of a later round", WAIT_S)
    destroy(server_of(federation))
    until(lambda: not server_of(federation), "the server is gone")
    assert last_round(folder) < later
    change_schema(folder, "DROP TRIGGER wait")
    return rows(folder, COHORTS)


def change_schema(folder, statement):
    """Change a ledger that a server writes."""
    with closing(sqlite3.connect(folder / "ledger.sqlite", timeout=WAIT_S)) as ledger:
        ledger.execute(statement)


def server_of(federation):
    """The process of the run's ServerApp, if it runs."""
    return named(descendants(federation.server.pid), "flwr-serverapp")


def test_a_hospital_that_is_gone_is_in_no_later_sum(hospitals, tmp_path):
    """Three of four members suffice; what was committed is the sum of those who were there."""
    federation, folder = hospitals.federation, hospitals.federation.runs / "away"
    command = hospitals.start("away", num_rounds=3, min_sites=3, round_timeout=120)
    until(lambda: last_round(folder) >= 1, "round 1")
    federation.kill("ward-4")
    assert command.wait(WAIT_S) == 0, federation.output_of("away")
    assert set(rows(folder, "SELECT site FROM contributions WHERE round = 3")) == {
        (name,) for name in NAMES[:3]
    }
    assert federation.digest("away") == hospitals.twin(tmp_path, "away").digest
    hospitals.join("ward-4")


def test_another_roster_is_refused_by_name_before_the_first_round(hospitals, tmp_path):
    """Of a hospital that has read one key wrongly; a roster without one's own key does not join."""
    federation, text = hospitals.federation, hospitals.roster.read_text()
    other, foreign = tmp_path / "other.toml", tmp_path / "foreign.toml"
    other.write_text(re.sub(r'("ward-1" = )"[0-9a-f]+"', rf'\1"{"ab" * 32}"', text))
    foreign.write_text(re.sub(r'("ward-4" = )"[0-9a-f]+"', rf'\1"{"ab" * 32}"', text))
    federation.nodes.pop("ward-4").terminate()
    hospitals.join("ward-4", roster=foreign)
    assert federation.nodes.pop("ward-4").wait(WAIT_S) == 2
    assert "roster" in federation.output_of("ward-4")
    hospitals.join("ward-4", roster=other)
    command = hospitals.start("mixed", num_rounds=2, wait_timeout=200)
    assert command.wait(WAIT_S) == 2
    assert last_round(federation.runs / "mixed") == 0
    assert "other roster" in federation.output_of("mixed")
    assert rows(federation.runs / "mixed", NEWEST) == [(0,)]
