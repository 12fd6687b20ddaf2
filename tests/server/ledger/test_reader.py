"""A ledger is read through named questions alone, also from a folder that may not be written."""

import ast
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from federation import config, federate, folder_of

from server.ledger.ledger import Ledger
from server.ledger.reader import LedgerReader
from server.ledger.records import ALL_SITES, SERVER, Evaluation
from server.ledger.summaries import Totals, Traffic
from shared.base.errors import LedgerError

ROOT = Path(__file__).resolve().parents[3]
SQL = re.compile(
    r"\b(SELECT\s.*\bFROM|INSERT\s+(OR\s+\w+\s+)?INTO|UPDATE\s.*\bSET|DELETE\s+FROM|CREATE\s+TABLE)\b"
    r"|\bPRAGMA\s",
    re.DOTALL,
)
NOBODY = 65534  # a user who may read the files of these tests and write none
OF_SITES = [  # a site's own ledger of what it has paid, and its own record of what it added up
    ROOT / "client" / "privacy" / "budget.py",
    ROOT / "client" / "sealed" / "answers.py",
]
MODULES = [
    path.relative_to(ROOT).as_posix()
    for package in ("server", "client", "shared", "dandelion")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.parent != ROOT / "server" / "ledger" and path not in OF_SITES
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of three rounds that is over."""
    chosen = config(tmp_path_factory.mktemp("reader"), eval_interval=1, snapshot_interval=1)
    federate(chosen)
    return folder_of(chosen)


@pytest.fixture
def read_only(run):
    """A copy of the run's folder in which neither file nor folder may be written."""
    with TemporaryDirectory() as folder:  # not pytest's, which others may not even look into
        Path(folder).chmod(0o755)
        copy = shutil.copytree(run, Path(folder, "copy ?#%"))
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield copy
        for path in (copy, *filter(Path.is_dir, copy.rglob("*"))):
            path.chmod(0o755)


READ = f"""
import os, sys
from pathlib import Path
from server.ledger.reader import LedgerReader
from server.ledger.snapshots import SnapshotReader
os.getuid() or os.setuid({NOBODY})  # root could write anywhere
ledger = LedgerReader.open(Path(sys.argv[1], "ledger.sqlite"))
print(ledger.last_round, len(SnapshotReader(ledger).read(3)) > 0)
"""


def read_without_the_right_to_write(folder):
    """Read a run's ledger and a snapshot in a process that may not write in its folder."""
    command = [sys.executable, "-c", READ, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout or done.stderr


def sql_of(source):
    """The SQL of a module: texts that are queries, and the import of a database."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names if alias.name == "sqlite3")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from (match[0] for match in [SQL.search(node.value)] if match)


def test_sql_stands_in_the_ledger_alone():
    assert len(MODULES) > 300
    assert not {path: sql for path in MODULES if (sql := [*sql_of((ROOT / path).read_text())])}
    assert [*sql_of("import os, sqlite3\nx = 'SELECT a FROM b'")] == [
        "import sqlite3", "SELECT a FROM"
    ]  # fmt: skip


def test_the_questions_are_answered_with_what_was_written(run):
    with closing(LedgerReader.open(run / "ledger.sqlite")) as ledger:
        evaluations, metrics = ledger.evaluations(), ledger.metrics()
        assert [e.round for e in evaluations] == [0, 1, 2, 3]
        assert ledger.evaluations(after=2) == [Evaluation(3, ledger.evaluation(3))]
        assert [m.round for m in metrics] == [1, 2, 3]
        assert ledger.metrics_of(2) == metrics[1]
        assert ledger.metrics_of(4) is ledger.evaluation(4) is ledger.snapshot(4) is None
        assert ledger.loss_after(1) == metrics[1].loss
        assert ledger.loss_after(3) is None
        assert sorted(site.site for site in ledger.sites()) == ["0", "1", "2"]
        assert [row.round for row in ledger.snapshots()] == [1, 2, 3]
        assert not any(map(ledger.is_rewind, (1, 2, 3)))
        assert not ledger.scores(SERVER) | ledger.scores(ALL_SITES)  # no classes


def test_sums_agree_with_the_rows_that_they_add_up(run):
    with closing(LedgerReader.open(run / "ledger.sqlite")) as ledger:
        metrics, traffic = ledger.metrics(), ledger.traffic()
        assert ledger.totals() == Totals(
            sum(m.forwards for m in metrics),
            sum(m.bytes_up for m in metrics),
            sum(m.bytes_down for m in metrics),
            pytest.approx(sum(m.seconds for m in metrics)),
            3,
        )
        both = Traffic(sum(t.payload for t in traffic), sum(t.message for t in traffic))
        assert ledger.traffic_totals() == both
        up, down = ledger.traffic_totals("up"), ledger.traffic_totals("down")
        assert (up.payload + down.payload, up.message + down.message) == both
        assert [ledger.payload_bytes(m.round, "up") for m in metrics] == [
            m.bytes_up for m in metrics
        ]
        assert ledger.entry_bytes() == sum(map(len, ledger.payloads(0, 3)))
        assert [ledger.count_cohort(round_) for round_ in (1, 2, 3, 4)] == [3, 3, 3, 0]
        assert ledger.count_contributors() == 3
        assert ledger.count_skips() == ledger.count_skips(1) == ledger.count_not_finite(1) == 0
        assert [len(ledger.site_losses(round_)) for round_ in (0, 1)] == [0, 3]
        last = ledger.cost_points()[-1]
        assert (last.round, last.payload, last.forwards) == (3, both.payload, ledger.totals()[0])
        assert [s.round for s in ledger.site_states()] == [3, 3, 3]


def test_a_ledger_in_which_nothing_happened_has_no_sums(tmp_path):
    with closing(Ledger.create(tmp_path / "ledger.sqlite", {"run": b"r"})) as ledger:
        assert ledger.totals() == (0, 0, 0, 0.0, 0)
        assert ledger.traffic_totals() == (0, 0)
        assert ledger.mean_bytes("up") == (0.0, 0.0)
        assert ledger.mean_gradient_norm(10) is None
        assert ledger.last_round == ledger.entry_bytes() == 0
        assert not ledger.cost_points() + ledger.site_states() + ledger.site_rounds(0, 9)
        with pytest.raises(LedgerError, match="table head has no row 'base'"):
            ledger.header("base")


def test_a_reader_writes_nothing(run):
    path = run / "ledger.sqlite"
    before = path.read_bytes()
    with closing(LedgerReader.open(path)) as ledger:
        with pytest.raises(LedgerError, match=r"ledger\.sqlite: cannot be written"):
            ledger._database.write("DELETE FROM entries")
        assert ledger.last_round == 3
    assert path.read_bytes() == before


def test_a_reader_sees_what_a_writer_commits_meanwhile(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with (
        closing(Ledger.create(path, {"run": b"r"})) as writer,
        closing(LedgerReader.open(path)) as reader,
    ):
        writer.record_evaluation(0, 5.5)
        assert reader.evaluations() == [Evaluation(0, 5.5)]


def test_a_run_in_a_read_only_folder_can_be_read_and_its_snapshots_too(read_only):
    files = {path: path.read_bytes() for path in read_only.rglob("*") if path.is_file()}
    assert read_without_the_right_to_write(read_only) == "3 True\n"
    assert {path: path.read_bytes() for path in read_only.rglob("*") if path.is_file()} == files


def test_an_empty_log_beside_a_read_only_ledger_does_no_harm(read_only):
    """A reader in a folder that may be written leaves one there, and it is copied as well."""
    read_only.chmod(0o755)
    (read_only / "ledger.sqlite-wal").touch()
    read_only.chmod(0o555)
    assert read_without_the_right_to_write(read_only) == "3 True\n"
