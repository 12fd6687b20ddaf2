"""Every registered task by every registered mode, from a file, with a chat model: no edit here."""

import pytest
import torch
from federation import config, federate, ledger_of, replayed
from small_tasks import task_settings

from shared.modes.mode import MODES
from shared.tasks.task import TASKS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.mark.parametrize("task", TASKS.names())
def test_a_task_is_trained_in_every_mode_and_its_ledger_rebuilds_the_model(task, tmp_path):
    if task == "generation":
        pytest.importorskip("rouge_score", reason="the extra generation is not installed")
    given = {key.replace("-", "_"): value for key, value in task_settings(task, tmp_path).items()}
    for mode in MODES.names():
        c = config(tmp_path, mode, mode=mode, bp_interval=2, num_clients=2, **given)
        run = federate(c)
        assert run.summary["refused_replies"] == 0, mode
        assert run.summary["evaluation_loss_last"] != run.summary["evaluation_loss_first"], mode
        with ledger_of(c) as ledger:
            assert torch.equal(replayed(c, ledger, 3), run.flat), mode
