"""The table for users of the original has every flag of it, and only keys that are ours."""

import re
from pathlib import Path

import pytest
import typer

from dandelion.cli.app import app
from shared.training.components import all_keys, parse
from shared.training.validate import configure

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "from-zo_withbp.md").read_text()
FLAGS = [
    "mode",
    "scope",
    "query_budget_q",
    "bp_interval",
    "dataset",
    "max_samples",
    "bp_dataset",
    "bp_max_samples",
    "bp_batch_size",
    "zo_query_batch_size",
    "split_dataset_for_bp_zo",
    "zo_share_data_across_queries",
    "queries_use_different_data",
    "blend_bp_gradient",
    "parallel_q_computation",
    "parallel_batch_size",
    "optimizer",
    "learning_rate",
    "use_lr_scheduler",
    "warmup_steps",
    "epochs",
    "batch_size",
    "model_size",
    "eval_dataset",
    "eval_interval",
    "log_interval",
    "run_name",
    "log_dir",
    "checkpoint_dir",
    "disable_checkpoint",
]
CODE = re.compile(r"`([^`]*)`")


def rows(title):
    """The cells of the table under a heading."""
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("| \n").split("|")] for line in lines[1:]]


FLAG_ROWS = rows("Flags of the training scripts")


def test_every_flag_of_the_original_is_there():
    named = {code.split()[0] for row in FLAG_ROWS for code in CODE.findall(row[0])}
    assert named == {f"--{flag}" for flag in FLAGS}


@pytest.mark.parametrize("row", FLAG_ROWS, ids=lambda row: row[0])
def test_what_a_flag_became_is_a_setting_and_its_value_can_be_set(row):
    pairs = CODE.findall(row[1])
    assert pairs
    values = {}
    for pair in pairs:
        key, _, value = pair.partition(" = ")
        assert key in all_keys(), key
        if value:
            values[key] = parse(key, value.strip('"'))
    configure(values)


def test_other_keys_that_the_page_speaks_of_exist():
    known = all_keys()
    remarks = [code for row in FLAG_ROWS for code in CODE.findall(row[2] if len(row) > 2 else "")]
    keys = [code for code in remarks if re.fullmatch(r"[a-z]+-[a-z-]+", code)]
    assert len(keys) > 5
    assert set(keys) <= set(known)


def test_every_command_that_replaces_a_script_exists():
    command = typer.main.get_command(app)
    named = set(re.findall(r"`dandelion ([a-z]+)", PAGE))
    assert {"run", "sweep", "compare", "plot", "server", "client", "preflight"} <= named
    assert named <= set(command.commands)
