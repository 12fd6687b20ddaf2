"""A model that can be measured and stepped: module, replica and perturbed evaluation together."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import xxhash
from torch import Tensor, nn

from shared.base.errors import ConfigError, DataError
from shared.base.flat import flatten
from shared.base.metrics import EvalSums
from shared.config.schema import Config
from shared.estimation.activation_cache import FrozenPrefixCache
from shared.estimation.batched_queries import BatchedQueries
from shared.estimation.perturber import Perturber
from shared.models.adapters import adapt_
from shared.models.model import LanguageModel, load_model
from shared.replica.replica import Replica, digest_of
from shared.tasks.classification import label_words
from shared.tasks.task import Task, task_of
from shared.training.scopes import trainable


@dataclass(frozen=True)
class Oracle:
    """What server and sites build alike from the same configuration."""

    language_model: LanguageModel
    task: Task
    replica: Replica
    base: bytes  # 16, digest of every parameter and buffer of the untrained model

    @classmethod
    def of(cls, config: Config) -> "Oracle":
        """The untrained model that ``config`` names, at round 0.

        Raises:
            ConfigError: no such device, or blocks longer than the model reads.
        """
        torch.set_num_threads(config.threads)
        if config.device != "cpu" and not torch.cuda.is_available():
            raise ConfigError(f"device {config.device!r}: no CUDA device is visible here; use cpu")
        model = start_of(config)
        if config.block_size > model.positions:
            raise ConfigError(
                f"block-size up to {model.positions} expected for model {config.model.name!r}, "
                f"got {config.block_size}"
            )
        if config.scope == "lora":
            adapt_(model.module, config)
        module = in_dtype_(model.module.to(config.device), config.dtype)
        base = base_digest(module)
        replica = Replica.of(flatten(module, trainable(config, module)), config)
        return cls(model, task_of(config, model), replica, base)

    @cached_property
    def perturber(self) -> Perturber:
        """Evaluates the model at θ + scale * z; owns the scratch."""
        return Perturber(self.replica.model, self.replica.directions)

    @cached_property
    def frozen(self) -> FrozenPrefixCache:
        """What of the model is computed once for a batch."""
        return FrozenPrefixCache(self.replica.model)

    @cached_property
    def parallel(self) -> BatchedQueries:
        """Measures several directions in one forward pass."""
        return BatchedQueries(self.replica.model, self.replica.directions, self.perturber)

    def loss(self, rows: Tensor) -> float:
        """Mean loss in nats of a batch of the task's rows, at the model's current parameters."""
        with torch.inference_mode():
            return float(self.task.loss(self.language_model.module, self._here(rows)))

    def losses(self, rows: Tensor) -> Tensor:
        """Mean loss of each example of a batch, as (B,) float64 on the CPU."""
        with torch.inference_mode():
            return self.task.each(self.language_model.module, self._here(rows)).cpu()

    def outcome(self, rows: Tensor) -> EvalSums:
        """Loss and choices of a batch of the task's rows, at the model's current parameters."""
        with torch.inference_mode():
            return self.task.outcome(self.language_model.module, self._here(rows))

    def gradient(self, rows: Tensor) -> tuple[float, Tensor]:
        """Loss of a batch, and its gradient (size,) by backpropagation, padding zero."""
        model = self.replica.model
        named = dict(model.module.named_parameters())
        chosen = {span.name: named[span.name] for span in model.layout.tensors}
        loss = self.task.loss(self.language_model.module, self._here(rows))
        found = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
        parts = {
            name: torch.zeros_like(own) if part is None else part
            for (name, own), part in zip(chosen.items(), found, strict=True)
        }
        return float(loss.detach()), model.gather(parts)

    def _here(self, rows: Tensor) -> Tensor:
        return rows.to(self.replica.model.flat.device)


def start_of(config: Config) -> LanguageModel:
    """The model that a run starts from: untrained, or what another run (``init-from``) came to.

    Raises:
        DataError: that run left no model.
    """
    labels = label_words(config) if config.task == "classification" else ()
    if not config.init_from:
        return load_model(config.model.name, config.seed, labels)
    folder = Path(config.init_from)
    found = folder / "model" if (folder / "model").is_dir() else folder
    if not (found / "config.json").is_file():
        raise DataError(
            f"init-from: {folder} holds no model; a run with save-model = true leaves one, and so "
            f"does 'dandelion ledger replay {folder} --round N --out {folder / 'model'}'"
        )
    return load_model(str(found), config.seed, labels)


def in_dtype_(module: nn.Module, dtype: str) -> nn.Module:
    """Hold a module's parameters in a type of numbers; buffers, such as angles, stay."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return module


def base_digest(module: nn.Module) -> bytes:
    """16 bytes over names and bits of all parameters and buffers, frozen ones included."""
    found = xxhash.xxh3_128()
    tensors = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        found.update(name.encode())
        found.update(digest_of(tensor.detach().contiguous()))
    return found.digest()


BATCH = 16  # examples at once


def evaluate(oracle: Oracle, rows: Tensor) -> EvalSums:
    """Loss and scores over all ``rows`` of the task, at the model's current parameters."""
    return sum(map(oracle.outcome, torch.split(rows, BATCH)), EvalSums(0.0, 0))
