"""The budget ledger: rows before replies, kill -9, roll-back, damage, and data that changed."""

import fcntl
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from shutil import copytree

import pytest

from client.privacy.account import Account
from client.privacy.budget import (
    BUDGET_FILE,
    COUNTER_FILE,
    LOCK_FILE,
    BudgetLedger,
    DataSet,
    Event,
)
from client.privacy.node_policy import NodePolicy
from shared.base.errors import BudgetError, PolicyError
from shared.config.schema import Config
from shared.privacy.accounting import Rounds

ROOT = Path(__file__).parents[3]
DATA = DataSet(0, "f" * 64, "/data/ward", "example", 100)


def event(number, data=1, noise=1.0, run="run"):
    return Event(data, run, number, number.to_bytes(32, "little"), noise, 3, 16)


@pytest.fixture
def budget(tmp_path):
    with closing(BudgetLedger(tmp_path / "privacy")) as own:
        own.register(DATA)
        yield own


def spend_some(folder, count):
    with closing(BudgetLedger(folder)) as own:
        own.register(DATA)
        for number in range(1, count + 1):
            own.spend(event(number))


def test_equal_answers_are_paid_for_once(budget):
    assert budget.spend(event(1))
    assert not budget.spend(event(1))
    assert budget.spend(event(2))
    assert budget.spent(1) == [Rounds(2, 1.0, 3)]
    assert budget.numbers(1) == 32


def test_the_file_is_its_owners_alone(budget):
    assert budget.path.stat().st_mode & 0o077 == 0
    assert budget.path.parent.stat().st_mode & 0o077 == 0


def test_spends_are_kept_by_run_and_by_kind(budget):
    budget.spend(event(1))
    budget.spend(event(2, run="other"))
    budget.spend(event(3, noise=2.0))
    assert budget.spent(1) == [Rounds(2, 1.0, 3), Rounds(1, 2.0, 3)]
    assert budget.spent(1, "other") == [Rounds(1, 1.0, 3)]
    assert budget.runs(1) == ["run", "other"]


def test_two_open_budgets_do_not_lose_a_row(budget):
    with closing(BudgetLedger(budget.path.parent)) as other:
        for number in range(1, 9):
            (budget, other)[number % 2].spend(event(number))
    assert budget.spent(1) == [Rounds(8, 1.0, 3)]


def test_no_other_process_spends_between_the_check_of_an_answer_and_its_row(budget, monkeypatch):
    free, numbers = [], BudgetLedger.numbers

    def numbers_of(own, data):
        with (own.path.parent / LOCK_FILE).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free.append(True)
            except BlockingIOError:
                free.append(False)
        return numbers(own, data)

    monkeypatch.setattr(BudgetLedger, "numbers", numbers_of)
    account = Account("ward", budget, budget.sets()[0], NodePolicy(max_numbers=16), Config())
    account.pay(event(1, noise=0.0))
    account.pay(event(1, noise=0.0))  # the same answer
    with pytest.raises(PolicyError, match="max-numbers"):
        account.pay(event(2, noise=0.0))
    assert free == [False, False]
    assert budget.numbers(1) == 16


def test_a_copy_from_before_is_refused(tmp_path):
    folder = tmp_path / "privacy"
    spend_some(folder, 3)
    copytree(folder, tmp_path / "backup")
    spend_some(folder, 5)
    (folder / BUDGET_FILE).write_bytes((tmp_path / "backup" / BUDGET_FILE).read_bytes())
    for extra in folder.glob(f"{BUDGET_FILE}-*"):
        extra.unlink()
    with pytest.raises(BudgetError, match="rolled back"):
        BudgetLedger(folder)


def test_a_budget_that_is_rolled_back_while_it_is_open_is_refused(budget):
    budget.spend(event(1))
    (budget.path.parent / COUNTER_FILE).write_text(f"7 {'ab' * 32}\n")
    with pytest.raises(BudgetError, match="rolled back"):
        budget.spend(event(2))


def test_a_missing_file_beside_a_counter_is_refused(tmp_path):
    folder = tmp_path / "privacy"
    spend_some(folder, 2)
    (folder / BUDGET_FILE).unlink()
    with pytest.raises(BudgetError, match="missing"):
        BudgetLedger(folder)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE events SET noise = 9 WHERE number = 2",
        "DELETE FROM events WHERE number = 2",
        "UPDATE sets SET units = 10000",
        "UPDATE events SET chain = x'00' WHERE number = 3",
    ],
)
def test_a_changed_row_is_detected(tmp_path, change):
    folder = tmp_path / "privacy"
    spend_some(folder, 3)
    with closing(sqlite3.connect(folder / BUDGET_FILE)) as file, file:
        file.execute(change)
    with pytest.raises(BudgetError, match="does not fit its chain"):
        BudgetLedger(folder)


@pytest.mark.parametrize("text", ["", "many", "3 zz", "3"])
def test_a_damaged_counter_is_refused(tmp_path, text):
    folder = tmp_path / "privacy"
    spend_some(folder, 3)
    (folder / COUNTER_FILE).write_text(text)
    with pytest.raises(BudgetError, match="a number and a hash"):
        BudgetLedger(folder)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / BUDGET_FILE).write_bytes(b"no database" * 100)
    with pytest.raises(BudgetError, match="cannot be used"):
        BudgetLedger(tmp_path)


def test_changed_data_are_refused_until_they_inherit_what_was_spent(budget):
    budget.spend(event(1))
    grown = DataSet(0, "a" * 64, DATA.name, "example", 120)
    with pytest.raises(BudgetError, match="budget adopt"):
        budget.register(grown)
    adopted = budget.adopt(grown)
    assert budget.register(grown) == adopted
    budget.spend(event(2, data=adopted.id))
    assert budget.spent(adopted.id) == [Rounds(2, 1.0, 3)]
    assert budget.numbers(adopted.id) == 32
    with pytest.raises(BudgetError, match="known already"):
        budget.adopt(grown)
    with closing(BudgetLedger(budget.path.parent)) as again:
        assert again.spent(adopted.id) == [Rounds(2, 1.0, 3)]


def test_a_renamed_folder_is_the_same_data(budget):
    renamed = DataSet(0, DATA.fingerprint, "/data/elsewhere", "example", 100)
    assert budget.register(renamed).id == 1


def test_an_unknown_name_has_nothing_to_adopt(budget):
    with pytest.raises(BudgetError, match="no data of this name"):
        budget.adopt(DataSet(0, "b" * 64, "/data/other", "example", 1))


SPENDER = """
import sys
from pathlib import Path
from client.privacy.budget import BudgetLedger, DataSet, Event
budget = BudgetLedger(Path(sys.argv[1]))
data = budget.register(DataSet(0, "f" * 64, "/data/ward", "example", 100))
first = sum(each.times for each in budget.spent(data.id))
for number in range(first + 1, first + 10_000):
    budget.spend(Event(data.id, "run", number, number.to_bytes(32, "little"), 1.0, 3, 16))
    sys.stdout.write(f"{number}\\n")  # the reply leaves
    sys.stdout.flush()
"""


@pytest.mark.parametrize("wait_s", [0.0, 0.003, 0.011])
def test_a_killed_process_has_spent_what_left(tmp_path, wait_s):
    folder, seen = tmp_path / "privacy", 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", SPENDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE
        ) as process:
            lines = [process.stdout.readline() for _ in range(3)]
            time.sleep(wait_s)
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split(b"\n")[:-1]
        seen = int((lines + rest)[-1])
        with closing(BudgetLedger(folder)) as own:
            spent = sum(each.times for each in own.spent(1))
        assert seen <= spent <= seen + 1


def test_a_row_without_its_count_is_counted_when_it_is_opened(tmp_path):
    folder = tmp_path / "privacy"
    spend_some(folder, 2)
    before = (folder / COUNTER_FILE).read_text()
    spend_some(folder, 3)
    (folder / COUNTER_FILE).write_text(before)  # killed between the two writes
    with closing(BudgetLedger(folder)) as own:
        assert own.spent(1) == [Rounds(3, 1.0, 3)]
    assert (folder / COUNTER_FILE).read_text().split()[0] == "3"
