"""What a run starts from: its model, the task of it, which parameters are trained, and a digest."""

from collections.abc import Callable
from pathlib import Path

import torch
import xxhash
from torch import nn

from shared.base.errors import DataError
from shared.base.text import quote_command
from shared.config.answer_section import ESTIMATING
from shared.config.schema import Config
from shared.config.text_section import CONVERSED
from shared.features.readout import attach_readout_
from shared.features.readout_logits import readout_settings
from shared.models.kernels.compiled_losses import compile_losses_
from shared.models.load import load_light, load_model, with_number_head
from shared.models.model import LanguageModel
from shared.objectives.reward import is_reward
from shared.problem.load import load_problem
from shared.problem.model import WEIGHTS_FILE, problem_model, without_frozen
from shared.problem.task import ProblemTask
from shared.replica.replica import digest_of
from shared.tasks.classification import label_words
from shared.tasks.task import TASKS, Task, task_of
from shared.training.scopes import trainable

PREDICTING = "language-modelling"  # name of the task
OUTPUT = ("number",)  # the name of the only output of a head that estimates


def choose_parameters(config: Config, module: nn.Module) -> Callable[[str], bool]:
    """Which parameters are trained, as a function of their names."""
    chosen = trainable(config.model.scope, module)
    return without_frozen(module, chosen) if config.model.app else chosen


def run_task(config: Config, model: LanguageModel) -> Task:
    """The task of a run: that of its settings, or the loss of its own problem.

    Raises:
        ConfigError: as ``task_of``, or there is no such problem.
    """
    if not config.model.app:
        return task_of(config, model)
    loaded = load_problem(config.model.app, config.run.app_dir)
    return ProblemTask(loaded.app, loaded.problem, loaded.table)


def load_start(config: Config) -> LanguageModel:
    """Load the model that a run starts from: untrained, or the result of another (``init-from``).

    Raises:
        DataError: that run left no model.
    """
    labels: tuple[str, ...] = OUTPUT if config.data.task == ESTIMATING else ()
    if config.data.task == "classification":
        labels = label_words(config.data)
    start = start_folder(config)
    if config.model.app:
        loaded = load_problem(config.model.app, config.run.app_dir)
        return problem_model(loaded.app, loaded.problem, config.training.seed, start)
    name = config.model.name if start is None else str(start)
    if _needs_logits_alone(config):
        light = load_light(name, config.training.seed)
        if config.run.kernels == "compiled":
            compile_losses_(light.module)
        return light
    model = load_model(name, config.training.seed, labels)
    if config.data.task == ESTIMATING and not model.has_head:
        return with_number_head(model, config.training.seed)
    return model


def _needs_logits_alone(config: Config) -> bool:
    """Whether all that a run asks of its model is the logits of next tokens.

    A reward may call it, or let it generate, in any way that transformers' models know.
    """
    return config.data.task in (PREDICTING, *CONVERSED) and not is_reward(config.zo.objective)


def start_folder(config: Config) -> Path | None:
    """The folder of the model that ``init-from`` names; None if it names none.

    Raises:
        DataError: that run left no model.
    """
    if not config.model.init_from:
        return None
    folder = Path(config.model.init_from)
    source = folder / "model" if (folder / "model").is_dir() else folder
    file = WEIGHTS_FILE if config.model.app else "config.json"
    if not (source / file).is_file():
        out = folder / "model"
        replay = quote_command("dandelion", "ledger", "replay", folder, "--round=N", "--out", out)
        raise DataError(
            f"init-from: {folder} holds no model; a run with save-model = true leaves one, and so "
            f"does: {replay}"
        )
    return source


def add_readout_(model: LanguageModel, config: Config) -> None:
    """Give the model the readout that the scope trains, or that the run starts from, if any.

    Raises:
        ConfigError: the scope does not fit task and model, or the two readouts differ.
    """
    wanted = readout_settings(config, model, _outputs_of(config))
    attach_readout_(model.module, wanted, start_folder(config))


def _outputs_of(config: Config) -> int:
    """How many outputs a readout has in the task of a run; 0: the task takes none."""
    if config.data.task == ESTIMATING:
        return 1
    if config.data.task == "classification":
        return len(label_words(config.data))
    return int(getattr(TASKS[config.data.task], "outputs", 0))  # a plug-in's says so


def cast_(module: nn.Module, dtype: str) -> nn.Module:
    """Cast a module's parameters to a dtype; buffers, such as angles, stay as they are."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return module


def base_digest(module: nn.Module, source: bytes = b"") -> bytes:
    """16 bytes over names and bits of all parameters and buffers, frozen ones included.

    ``source`` is that of a function which decides numbers too, if the run has one.
    """
    digest = xxhash.xxh3_128(source)
    tensors = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(name.encode())
        digest.update(digest_of(tensor.detach().contiguous()))
    return digest.digest()
