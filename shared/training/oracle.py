"""The oracle of a run's model: loss, loss at θ ± εz, and gradient, on batches of its task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from shared.base.errors import ConfigError, DataError
from shared.base.flat import flatten
from shared.base.metrics import EvalSums
from shared.config.run_sections import RunSettings
from shared.config.schema import Config
from shared.estimation.activation_cache import FrozenPrefixCache
from shared.estimation.batched_queries import BatchedQueries
from shared.estimation.perturber import Perturber
from shared.features.cut import KeptPrefix
from shared.features.readout import BIAS, WEIGHT, LinearBatch, attach_readout_
from shared.features.readout_logits import readout_settings
from shared.models.adapters import adapt_
from shared.models.load import load_model
from shared.models.model import LanguageModel
from shared.objectives.objective import Objective, check_objective, objective_of
from shared.objectives.reward import reward_source
from shared.optimizers.gradient import add_scaled_
from shared.replica.replica import Replica, digest_of
from shared.tasks.classification import label_words
from shared.tasks.task import Task, task_of
from shared.training.scopes import trainable

EVALUATION_BATCH = 16  # examples of one forward pass


@dataclass(frozen=True)
class Oracle:
    """Zeroth- and first-order oracle; server and sites build it from the same configuration."""

    language_model: LanguageModel
    task: Task
    replica: Replica
    objective: Objective
    base: bytes  # 16, digest of the untrained model, and of the source of a reward
    run: RunSettings

    @classmethod
    def of(cls, config: Config) -> "Oracle":
        """The untrained model that ``config`` names, at round 0.

        Raises:
            ConfigError: no such device, blocks longer than the model reads, or a scope or task
                that does not fit the model.
        """
        torch.set_num_threads(config.run.threads)
        if config.run.device != "cpu" and not torch.cuda.is_available():
            raise ConfigError(
                f"device {config.run.device!r}: no CUDA device is visible here; use cpu"
            )
        model = load_start(config)
        if config.data.block_size > model.positions:
            raise ConfigError(
                f"block-size up to {model.positions} expected for model {config.model.name!r}, "
                f"got {config.data.block_size}"
            )
        add_readout_(model, config)
        if config.model.scope == "lora":
            model = adapt_(model, config.model, config.training.seed)
        module = cast_(model.module.to(config.run.device), config.model.dtype)
        base = base_digest(module, reward_source(config.zo.objective))
        replica = Replica.of(flatten(module, trainable(config.model.scope, module)), config)
        task = task_of(config, model)
        return cls(model, task, replica, objective_of(config, task), base, config.run)

    @cached_property
    def perturber(self) -> Perturber:
        """Evaluates the model at θ + scale * z; owns the scratch."""
        return Perturber(self.replica.model, self.replica.directions)

    @cached_property
    def frozen(self) -> FrozenPrefixCache:
        """Caches the activations before the first trained parameter, while a batch is measured."""
        return FrozenPrefixCache(self.replica.model)

    @cached_property
    def kept(self) -> KeptPrefix:
        """Keeps the activations before the first trained block of each example, for the run.

        A linear scope has its features kept instead: nothing is computed beside them.
        """
        model, task = self.language_model, self.task
        identity = model.tokenizer.identity
        run = replace(self.run, keep_memory=0, keep_disk=0) if self.is_linear else self.run
        return KeptPrefix(self.replica.model, task.each, task.classes > 0, identity, run)

    @cached_property
    def parallel(self) -> BatchedQueries:
        """Measures several directions in one forward pass."""
        return BatchedQueries(
            self.replica.model, self.replica.directions, self.perturber, self.kept.at
        )

    def loss(self, rows: Tensor) -> float:
        """Mean objective of a batch of the task's rows, at the model's current parameters.

        It is the loss in nats, unless the setting ``objective`` names another.
        """
        with torch.inference_mode(), self.kept.at(rows):
            return float(self.objective.loss(self.language_model.module, self._to_device(rows)))

    def loss_of_all(self, rows: Tensor) -> float:
        """Mean loss of any number of rows, a few in each forward pass: its memory stays bounded."""
        parts = torch.split(rows, EVALUATION_BATCH)
        return sum(self.loss(part) * len(part) for part in parts) / len(rows)

    def losses(self, rows: Tensor) -> Tensor:
        """Objective of each example of a batch, as (B,) float64 on the CPU."""
        with torch.inference_mode(), self.kept.at(rows):
            return self.objective.each(self.language_model.module, self._to_device(rows)).cpu()

    def check_objective(self, rows: Tensor) -> None:
        """Try the objective on a batch, unless it is the loss.

        Raises:
            ConfigError: it gives no finite number for each example.
        """
        check_objective(self.objective, self.language_model.module, self._to_device(rows))

    def outcome(self, rows: Tensor) -> EvalSums:
        """Loss and scores of a batch of the task's rows, at the model's current parameters."""
        with torch.inference_mode(), self.kept.at(rows):
            return self.task.outcome(self.language_model.module, self._to_device(rows))

    @cached_property
    def is_linear(self) -> bool:
        """Whether all that is trained is a readout: its gradient has a closed form."""
        return all(span.name in (WEIGHT, BIAS) for span in self.replica.model.layout.tensors)

    def linear_gradient(self, rows: Tensor) -> tuple[float, Tensor]:
        """Loss of a batch, and its gradient (size,) without backpropagation; for ``is_linear``."""
        task: Any = self.task
        batch: LinearBatch = task.linear_batch(self.language_model.module, self._to_device(rows))
        return batch.loss, self.replica.model.gather(batch.gradient())

    def linear_slopes(self, rows: Tensor) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """The slopes (B,) of each example along a direction given by name; for ``is_linear``."""
        task: Any = self.task
        batch: LinearBatch = task.linear_batch(self.language_model.module, self._to_device(rows))
        return batch.slopes

    def gradient(self, rows: Tensor) -> tuple[float, Tensor]:
        """Loss of a batch, and its gradient (size,), padding zero.

        It is backpropagated, unless a closed form is known.
        """
        if self.is_linear:
            return self.linear_gradient(rows)
        model = self.replica.model
        named = dict(model.module.named_parameters())
        chosen = {span.name: named[span.name] for span in model.layout.tensors}
        with self.kept.at(rows):
            loss = self.task.loss(self.language_model.module, self._to_device(rows))
        gradients = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
        parts = {
            name: torch.zeros_like(own) if part is None else part
            for (name, own), part in zip(chosen.items(), gradients, strict=True)
        }
        return float(loss.detach()), model.gather(parts)

    def gradient_of_all(self, rows: Tensor) -> tuple[float, Tensor]:
        """Loss and gradient (size,) of any number of rows, a few in each pass, in their order."""
        total, mean = 0.0, torch.zeros_like(self.replica.model.flat, dtype=torch.float32)
        for part in torch.split(rows, EVALUATION_BATCH):
            loss, gradient = self.gradient(part)
            share = len(part) / len(rows)
            total += share * loss
            add_scaled_(mean, gradient, share)
        return total, mean

    def _to_device(self, rows: Tensor) -> Tensor:
        return rows.to(self.replica.model.flat.device)


def load_start(config: Config) -> LanguageModel:
    """Load the model that a run starts from: untrained, or the result of another (``init-from``).

    Raises:
        DataError: that run left no model.
    """
    labels = label_words(config.data) if config.data.task == "classification" else ()
    start = start_folder(config)
    name = config.model.name if start is None else str(start)
    return load_model(name, config.training.seed, labels)


def start_folder(config: Config) -> Path | None:
    """The folder of the model that ``init-from`` names; None if it names none.

    Raises:
        DataError: that run left no model.
    """
    if not config.model.init_from:
        return None
    folder = Path(config.model.init_from)
    source = folder / "model" if (folder / "model").is_dir() else folder
    if not (source / "config.json").is_file():
        raise DataError(
            f"init-from: {folder} holds no model; a run with save-model = true leaves one, and so "
            f"does 'dandelion ledger replay {folder} --round N --out {folder / 'model'}'"
        )
    return source


def add_readout_(model: LanguageModel, config: Config) -> None:
    """Give the model the readout that the scope trains, or that the run starts from, if any.

    Raises:
        ConfigError: the scope does not fit task and model, or the two readouts differ.
    """
    is_classified = config.data.task == "classification"
    classes = len(label_words(config.data)) if is_classified else 0
    attach_readout_(model.module, readout_settings(config, model, classes), start_folder(config))


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


def evaluate(oracle: Oracle, rows: Tensor) -> EvalSums:
    """Loss and scores over all ``rows`` of the task, at the model's current parameters."""
    oracle.kept.prepare(rows)
    return sum(map(oracle.outcome, torch.split(rows, EVALUATION_BATCH)), EvalSums(0.0, 0))
