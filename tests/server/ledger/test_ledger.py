"""The ledger has whole rounds without a gap, and damage to it is detected when it is opened."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from federation import config, select
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from server.ledger.ledger import Ledger
from server.ledger.records import Contribution, Metrics, Refusal
from server.ledger.run_folder import LOCK, run_folder
from server.ledger.run_folder import open_run as at_run
from shared.base.errors import ConfigError, GapError, LedgerError
from shared.protocol.entry import Entry, SlotDifferences
from shared.protocol.transfers import Transfer

HEADER = {"run": b"r" * 16, "config": b"seed = 1\n" * 40, "base": b"b" * 16, "code": b"c" * 16}
ROUNDS = 6
some_bytes = settings(
    deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def values(round_, slot=0):
    return np.random.default_rng(100 * round_ + slot).standard_normal(8).astype(np.float32)


def entry(round_):
    return Entry(round_, 0.1 / round_, (SlotDifferences(0, values(round_)),))


def contributions(round_):
    return [
        Contribution(round_, slot, f"site {slot}", 10 * slot, 2.5 / slot, 0.1, values(round_, slot))
        for slot in (1, 2, 3)
    ]


def metrics(round_):
    return Metrics(round_, "2026-01-01T00:00:00", 2.5, 0.3, 0.1, 3, 48, 300, 400, 0.7)


def transfers(round_):
    return [Transfer(round_, "site 1", "up", "scalars", 100, 200)]


def commit(ledger, round_):
    refusals = [Refusal(round_, "site 2", "not finite", "nan")]
    return ledger.commit(
        entry(round_), contributions(round_), transfers(round_), metrics(round_), refusals
    )


def applied(ledger):
    """What replicas apply, and what it came from."""
    entries = ledger.payloads(0, ledger.last_round)
    header = {key: ledger.header(key) for key in HEADER}
    return entries, select(ledger, "SELECT * FROM contributions ORDER BY round, slot"), header


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The path of a ledger that is closed, and what is in it."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    with closing(Ledger.create(path, HEADER)) as ledger:
        for round_ in range(1, ROUNDS + 1):
            commit(ledger, round_)
        return path, applied(ledger)


@pytest.fixture
def copied(whole, tmp_path):
    """A path to a copy of the ledger that a test may damage."""
    return shutil.copy(whole[0], tmp_path / "copy.sqlite")


def alter(path, *statements):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    return path


def test_a_committed_round_is_read_back_then_and_after_the_ledger_is_opened_again(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with closing(Ledger.create(path, HEADER)) as ledger:
        assert ledger.last_round == 0
        back = commit(ledger, 1)
        before = applied(ledger)
    with closing(Ledger.open(path)) as ledger:
        assert back.encode() == ledger.entry(1).encode() == entry(1).encode()
        assert applied(ledger) == before
        assert {key: ledger.header(key) for key in HEADER} == HEADER
        assert ledger.refusals() == [Refusal(1, "site 2", "not finite", "nan")]
        assert ledger.traffic() == transfers(1)
        assert ledger.metrics() == [metrics(1)] == [ledger.metrics_of(1)]


def test_the_entry_that_is_returned_is_the_one_that_was_written(tmp_path):
    """Numbers that were float64 come back as the float32 that everyone else will read."""
    exact = np.array([0.1, 1e-9])
    with closing(Ledger.create(tmp_path / "ledger.sqlite", HEADER)) as ledger:
        back = ledger.commit(Entry(1, 0.1, (SlotDifferences(0, exact),)), [], [], metrics(1))
    assert back.slots[0].differences.dtype == np.float32
    assert (back.slots[0].differences == exact.astype(np.float32)).all()


@pytest.mark.parametrize("round_", [0, 1, 2, 4, 5])
def test_a_round_that_does_not_follow_is_an_error_and_changes_nothing(tmp_path, round_):
    with closing(Ledger.create(tmp_path / "ledger.sqlite", HEADER)) as ledger:
        commit(ledger, 1)
        commit(ledger, 2)
        before = applied(ledger)
        with pytest.raises(GapError, match=f"round 3 expected, got {round_}"):
            ledger.commit(Entry(round_, 0.1, ()), contributions(3), [], metrics(3))
        assert applied(ledger) == before


def test_a_round_that_cannot_be_written_whole_is_not_there(tmp_path):
    with closing(Ledger.create(tmp_path / "ledger.sqlite", HEADER)) as ledger:
        twice = contributions(1) + contributions(1)[:1]
        with pytest.raises(LedgerError, match=r"ledger\.sqlite: cannot be written"):
            ledger.commit(entry(1), twice, transfers(1), metrics(1))
        assert ledger.last_round == 0
        assert not ledger.traffic()
        commit(ledger, 1)


def test_the_first_digest_and_evaluation_of_a_round_stay(tmp_path):
    with closing(Ledger.create(tmp_path / "ledger.sqlite", HEADER)) as ledger:
        for digest, loss in ((b"1" * 16, 2.0), (b"2" * 16, 3.0)):
            ledger.record_digest(1, digest)
            ledger.record_evaluation(1, loss)
        ledger.record_evaluation(2, float("nan"))
        assert ledger.digest(1) == b"1" * 16
        assert ledger.digest(2) is None
        assert ledger.evaluations() == [(1, 2.0), (2, float("inf"))]


def test_rounds_that_are_not_there_are_an_error(whole):
    with closing(Ledger.open(whole[0])) as ledger:
        assert ledger.payloads(3, 3) == []
        with pytest.raises(LedgerError, match="rounds 5 to 9 expected, 2 are there"):
            ledger.payloads(4, 9)


def test_a_ledger_is_not_overwritten(whole):
    with pytest.raises(LedgerError, match="there is a ledger already"):
        Ledger.create(whole[0], HEADER)


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE entries SET payload = zeroblob(60) WHERE round = 4", "entries, row 4"),
        ("UPDATE entries SET payload = 'text' WHERE round = 4", "damaged"),
        ("UPDATE entries SET payload = 1000000000000 WHERE round = 4", "damaged"),
        ("UPDATE entries SET chain = zeroblob(32) WHERE round = 2", "entries, row 2"),
        ("UPDATE entries SET round = 9 WHERE round = 6", "entries: round 6 is missing"),
        ("DELETE FROM entries WHERE round = 3", "entries: round 3 is missing"),
        ("UPDATE contributions SET loss = 0 WHERE round = 5 AND slot = 2", "entries, row 5"),
        ("UPDATE contributions SET examples = 1 WHERE round = 1 AND slot = 1", "entries, row 1"),
        ("UPDATE contributions SET site = 'x' WHERE round = 1 AND slot = 1", "entries, row 1"),
        ("UPDATE contributions SET slot = 9 WHERE round = 2 AND slot = 1", "entries, row 2"),
        ("UPDATE contributions SET differences = zeroblob(32) WHERE round = 6", "entries, row 6"),
        ("DELETE FROM contributions WHERE round = 2 AND slot = 3", "entries, row 2"),
        ("UPDATE head SET value = zeroblob(16) WHERE key = 'base'", "head, row seal"),
        ("UPDATE head SET value = 77 WHERE key = 'base'", "damaged"),
        ("UPDATE head SET value = zeroblob(32) WHERE key = 'seal'", "head, row seal"),
        ("INSERT INTO head VALUES ('more', zeroblob(1))", "head, row seal"),
        ("DELETE FROM head WHERE key = 'run'", "head, row seal"),
        ("DELETE FROM entries WHERE round = 6", "contributions, round 6: the entries end with"),
        ("DELETE FROM metrics WHERE round = 3", "metrics: round 3 is missing"),
        ("DELETE FROM metrics WHERE round = 6", "metrics: round 6 is missing"),
        ("UPDATE metrics SET clients = 9 WHERE round = 2", "metrics, round 2: 3 sites"),
        ("UPDATE metrics SET round = 7 WHERE round = 6", "metrics, round 7"),
        ("INSERT INTO digests VALUES (7, zeroblob(16))", "digests, round 7"),
        ("INSERT INTO evaluations VALUES (7, 1.0)", "evaluations, round 7"),
        ("INSERT INTO evaluations VALUES (-1, 1.0)", "evaluations, round -1"),
        ("INSERT INTO scores VALUES (7, '', 'f1', 1.0)", "scores, round 7"),
        ("INSERT INTO snapshots VALUES (7, 'x', 1, zeroblob(16))", "snapshots, round 7"),
        ("INSERT INTO skips (round, detail) VALUES (9, '')", "skips, round 9"),
        ("INSERT INTO refusals VALUES (99, 9, 'a', 'b', '')", "refusals, round 9"),
        ("INSERT INTO cohorts VALUES (8, 0, 1, 'a', 0, zeroblob(32))", "cohorts, round 8"),
        ("INSERT INTO sums VALUES (7, 0, 1, 1, zeroblob(8))", "sums, round 7"),
        ("UPDATE traffic SET round = 9 WHERE round = 6", "traffic, round 9"),
        ("DROP TABLE contributions", "no such table"),
        ("PRAGMA user_version = 7", "version 3 to 6 expected, got 7"),
    ],
)
def test_a_later_change_is_detected_and_its_row_is_named(copied, statement, row):
    alter(copied, statement)
    with pytest.raises(LedgerError, match=rf"copy\.sqlite: .*{row}"):
        Ledger.open(copied)


def test_a_round_of_another_history_does_not_fit(copied, tmp_path):
    """Its own chain is in order; only the rounds before it are not those that it followed."""
    with closing(Ledger.create(tmp_path / "other.sqlite", HEADER)) as other:
        other.commit(Entry(1, 0.5, entry(1).slots), contributions(1), [], metrics(1))
        commit(other, 2)
    alter(
        copied,
        f"ATTACH '{tmp_path / 'other.sqlite'}' AS other",
        "INSERT OR REPLACE INTO entries SELECT * FROM other.entries WHERE round = 2",
    )
    with pytest.raises(LedgerError, match="entries, row 2: does not fit its chain"):
        Ledger.open(copied)


def opens_or_says_so(path, expected):
    """Open what may be damaged: an error names the file, else all that replicas apply is there."""
    try:
        ledger = Ledger.open(path)
    except LedgerError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
        return False
    with closing(ledger):
        assert applied(ledger) == expected
    return True


@given(st.data())
@some_bytes
def test_a_flipped_bit_is_detected_or_does_no_harm(whole, tmp_path, data):
    path, expected = whole
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(content)
    assert opens_or_says_so(damaged, expected) or content != path.read_bytes()


@given(st.data())
@some_bytes
def test_a_stretch_of_other_bytes_is_detected_or_does_no_harm(whole, tmp_path, data):
    path, expected = whole
    content = bytearray(path.read_bytes())
    start, patch = data.draw(st.integers(0, len(content))), data.draw(st.binary(max_size=64))
    content[start : start + len(patch)] = patch
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(content)
    assert opens_or_says_so(damaged, expected) or content != path.read_bytes()


def test_a_truncated_ledger_is_refused_at_any_length(whole, tmp_path):
    content = whole[0].read_bytes()
    lengths = {*range(0, len(content), 509), *range(0, len(content), 4096), len(content) - 1}
    for length in sorted(lengths):
        damaged = tmp_path / "damaged.sqlite"
        damaged.write_bytes(content[:length])
        opened = opens_or_says_so(damaged, whole[1])
        assert not opened or length > len(content) - 4096  # what is missing was an empty page's end
        assert (
            opened or damaged.read_bytes() == content[:length]
        )  # it is evidence: nothing was written


@given(st.integers(0, 1 << 20), st.integers(0, 7), st.booleans())
@example(0, 0, True)
@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_torn_write_ahead_log_gives_the_rounds_before_it(tmp_path, offset, bit, cut):
    """A machine that stops leaves the file and the log beside it, whose tail may be missing."""
    source, left = tmp_path / "source.sqlite", tmp_path / "left.sqlite"
    source.unlink(missing_ok=True)
    with closing(Ledger.create(source, HEADER)) as ledger:
        for round_ in (1, 2, 3):
            commit(ledger, round_)
        entries = ledger.payloads(0, 3)
        shutil.copy(source, left)
        log = bytearray(source.with_name("source.sqlite-wal").read_bytes())
    cut_at = offset % len(log)
    if cut:
        del log[cut_at:]
    else:
        log[cut_at] ^= 1 << bit
    left.with_name("left.sqlite-wal").write_bytes(log)
    try:
        with closing(Ledger.open(left)) as ledger:
            assert ledger.payloads(0, ledger.last_round) == entries[: ledger.last_round]
    except LedgerError as error:
        assert str(error).startswith(f"{left}: ")  # noqa: PT017


@pytest.mark.parametrize("content", [b"", b"not a ledger", bytes(8192), b"SQLite format 3\0" * 512])
def test_a_file_that_is_no_ledger_is_named(tmp_path, content):
    path = tmp_path / "other.sqlite"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"other\.sqlite: "):
        Ledger.open(path)


def test_a_ledger_that_is_not_there_is_named_and_not_made(tmp_path):
    with pytest.raises(LedgerError, match=r"none\.sqlite: no ledger there"):
        Ledger.open(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()


def test_another_process_cannot_open_a_run_that_is_being_worked_on(tmp_path):
    chosen = config(tmp_path)
    folder = run_folder(chosen)
    folder.mkdir()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1)"
    command = [sys.executable, "-uc", f"{hold}; input()", str(folder / LOCK)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout.readline() == "1\n"
        with pytest.raises(ConfigError, match="another process is at this run"), at_run(chosen):
            pass
        process.communicate("\n")
    with at_run(chosen) as run:
        assert run.ledger.last_round == 0
        with pytest.raises(ConfigError, match="another process"), at_run(chosen):
            pass
