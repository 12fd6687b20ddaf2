"""The oracle of a run's model: loss, loss at θ ± εz, and gradient, on batches of its task."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from shared.base.errors import ConfigError, DivergedError
from shared.base.flat import flatten
from shared.base.metrics import EvalSums
from shared.captured.passes import CapturedPasses
from shared.config.schema import Config
from shared.devices.names import check_presence, devices_of
from shared.devices.team import Helper, do_everywhere, share_out
from shared.estimation.activation_cache import FrozenPrefixCache
from shared.estimation.batched_queries import BatchedQueries
from shared.estimation.exact import gradient_of
from shared.estimation.perturber import Perturber
from shared.features.cut import KeptPrefix
from shared.features.prefix import count_frozen_blocks
from shared.features.readout import BIAS, WEIGHT, LinearBatch
from shared.masks.masked_module import mask_
from shared.models.adapters import adapt_
from shared.models.model import LanguageModel
from shared.objectives.objective import Objective, check_objective, objective_of
from shared.objectives.reward import reward_source
from shared.problem.model import ProblemModel
from shared.problem.task import ProblemTask
from shared.replica.replica import Replica
from shared.tasks.generation import Generation
from shared.tasks.instruction import Instruction
from shared.tasks.language_modelling import LanguageModelling
from shared.tasks.task import Task
from shared.training.problem_trial import ProblemTrial
from shared.training.start import (
    add_readout_,
    base_digest,
    cast_,
    choose_parameters,
    load_start,
    run_task,
)

T = TypeVar("T")
Measure = Callable[[nn.Module, Tensor], Tensor]  # a method of an objective

EVALUATION_BATCH = 16  # examples of one forward pass


@dataclass(frozen=True)
class Oracle:
    """Zeroth- and first-order oracle; server and sites build it from the same configuration."""

    language_model: LanguageModel
    task: Task
    replica: Replica
    objective: Objective
    base: bytes  # 16, digest of the untrained model, and of the source of a reward
    config: Config
    lender: KeptPrefix | None = None  # of the first device's oracle, on another device of a run

    @classmethod
    def of(cls, config: Config) -> "Oracle":
        """The untrained model that ``config`` names, at round 0, on the first of its devices.

        Raises:
            ConfigError: no such device, or blocks, a scope or a task that do not fit the model.
        """
        torch.set_num_threads(config.run.threads)
        check_presence(config.run.device)
        return cls._on(devices_of(config.run.device)[0], config)

    @classmethod
    def _on(cls, device: str, config: Config, lender: KeptPrefix | None = None) -> "Oracle":
        model = load_start(config)
        if config.data.block_size > model.positions:
            raise ConfigError(
                f"block-size up to {model.positions} expected for model {config.model.name!r}, "
                f"got {config.data.block_size}"
            )
        add_readout_(model, config)
        if config.model.scope == "lora":
            model = adapt_(model, config.model, config.training.seed)
        if config.model.is_masked:
            model = mask_(model, config.model.mask)
        module = model.module.to(device)
        if config.model.app:
            module = module.to(getattr(torch, config.model.dtype))  # buffers too
        module = cast_(module, config.model.dtype)
        base = base_digest(module, reward_source(config.zo.objective))
        flat = flatten(module, choose_parameters(config, module))
        replica = Replica.of(flat, config, steps=lender is None)
        task = run_task(config, model)
        return cls(model, task, replica, objective_of(config, task), base, config, lender)

    @property
    def other_devices(self) -> tuple[str, ...]:
        """The devices that share out evaluations with this oracle's own."""
        return devices_of(self.config.run.device)[1:] if self.lender is None else ()

    @cached_property
    def _helpers(self) -> list[Helper["Oracle"]]:
        """Oracles of the other devices, made if something is measured: never on a server."""
        return [self._help(device) for device in self.other_devices]

    def _help(self, device: str) -> Helper["Oracle"]:
        other = Oracle._on(device, self.config, self.kept)
        if other.base != self.base:
            expected, got = self.base.hex(), other.base.hex()
            raise DivergedError(f"base model {expected} expected on {device} too, got {got}")
        return Helper(other, other.replica.model.flat.device, self.config.run.threads)

    def share_out(
        self,
        count: int,
        work: Callable[["Oracle", range], Sequence[T]],
        passes: Callable[[], Iterable[Tensor]],
    ) -> list[T]:
        """The results of ``count`` evaluations in their order, each device with its share of them.

        ``work`` evaluates some numbers by the oracle that it gets, which it leaves as it is.
        ``passes`` gives the rows of its passes in the order in which one device would come to them.

        Raises:
            DivergedError: a device's replica has other parameters than the first one's.
        """

        def measure(other: Oracle, numbers: range) -> Sequence[T]:
            with other.frozen.reuse() if other is not self else nullcontext():
                return work(other, numbers)

        with self.frozen.reuse():
            if not self._helpers:
                return list(work(self, range(count)))
            self.replica.digest()
            do_everywhere(self._helpers, lambda other: other.replica.follow_(self.replica))
            with self.kept.lend(passes()):
                return share_out(self, self._helpers, count, measure)

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

        A linear scope has its features kept instead, and a problem's own examples have no tokens to
        be known by.
        """
        model, task = self.language_model, self.task
        identity, run = model.tokenizer.identity, self.config.run
        run = replace(run, keep_memory=0, keep_disk=0) if self._keeps_none else run
        is_first = task.classes > 0 or getattr(task, "has_targets", False)
        return KeptPrefix(self.replica.model, task.each, is_first, identity, run, self.lender)

    @property
    def _keeps_none(self) -> bool:
        return self.is_linear or isinstance(self.language_model, ProblemModel)

    @cached_property
    def passes(self) -> CapturedPasses:
        """Forward passes of a batch, captured on a card if all that they read is on it.

        What is kept or cached is looked up by the host, and so may be what a user's own problem or
        reward reads, or a task whose shapes depend on its rows.
        A captured pass would go on with the numbers of its first batch.
        """
        model, device = self.replica.model, self.replica.model.flat.device
        is_own = isinstance(self.language_model, ProblemModel) or self.objective is not self.task
        is_own = is_own or not getattr(self.task, "is_capturable", True)
        allowed = device.type == "cuda" and self.perturber.is_capturable and not is_own
        is_plain = allowed and self.frozen.is_empty and not count_frozen_blocks(model)
        return CapturedPasses.on(device, allowed=is_plain)

    @cached_property
    def parallel(self) -> BatchedQueries:
        """Measures several directions in one forward pass."""
        return BatchedQueries(
            self.replica.model,
            self.replica.directions,
            self.perturber,
            self.kept.at,
            None if isinstance(self.task, LanguageModelling) else self._each_of_points,
            is_checked=self.lender is not None,  # it is on the first device
        )

    def _each_of_points(self, module: nn.Module, rows: Tensor, points: int) -> Tensor:
        """Losses of the rows of several points; some tasks divide what they compute by point."""
        if isinstance(self.task, (Instruction, Generation)):
            return self.task.each_of_points(module, rows, points)
        return self.task.each(module, rows)

    def loss(self, rows: Tensor) -> float:
        """Mean objective of a batch of the task's rows, at the model's current parameters.

        It is the loss in nats, unless the setting ``objective`` names another.
        """
        return float(self._evaluate(self.objective.loss, rows))

    def loss_of_all(self, rows: Tensor) -> float:
        """Mean loss of any number of rows, a few in each forward pass: its memory stays bounded."""
        parts = torch.split(rows, EVALUATION_BATCH)
        return sum(self.loss(part) * len(part) for part in parts) / len(rows)

    def losses(self, rows: Tensor) -> Tensor:
        """Objective of each example of a batch, as (B,) float64 on the CPU."""
        return self._evaluate(self.objective.each, rows).cpu()

    def _evaluate(self, measure: Measure, rows: Tensor) -> Tensor:
        """What a method of the objective gives for a batch, at the model's current parameters."""
        module, name = self.language_model.module, (measure.__name__, self.perturber.is_active)
        with torch.inference_mode(), self.kept.at(rows):
            return self.passes.run(
                name, lambda batch: measure(module, batch), self._to_device(rows)
            )

    def check_objective(self, rows: Tensor) -> None:
        """Try the objective on a batch, unless it is the loss of a task of ours.

        Raises:
            ConfigError: it gives no finite number for each example, or one's own problem fails.
        """
        if isinstance(self.task, ProblemTask):
            replica = self.replica
            ProblemTrial(self.task, replica.model, replica.directions, self.perturber).check(rows)
            return
        check_objective(self.objective, self.language_model.module, self._to_device(rows))

    def outcome(self, rows: Tensor) -> EvalSums:
        """Loss and scores of a batch of the task's rows, at the model's current parameters."""
        module, on_device = self.language_model.module, self._to_device(rows)
        with torch.inference_mode(), self.kept.at(rows):
            outcome = self.task.outcome(module, on_device)
        if isinstance(self.task, Generation):  # writes token by token, which no cut knows
            return replace(outcome, sums=self.task.text_sums(module, on_device))
        return outcome

    @cached_property
    def is_linear(self) -> bool:
        """Whether all that is trained is a readout: its gradient has a closed form."""
        names = {span.name for span in self.replica.model.layout.tensors}
        return names <= {WEIGHT, BIAS} and not isinstance(self.language_model, ProblemModel)

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
        """Loss of a batch, and its gradient (size,), padding 0, in closed form if there is one."""
        if self.is_linear:
            return self.linear_gradient(rows)
        with self.kept.at(rows):
            loss = self.task.loss(self.language_model.module, self._to_device(rows))
        return float(loss.detach()), gradient_of(self.replica.model, loss)

    def keep(self, rows: Tensor) -> None:
        """Compute what is kept of any number of rows before it is needed, as far as there is room.

        It says in the log how far it is if that takes long.
        """
        if self.is_linear:
            task: Any = self.task
            task.keep(self.language_model.module, self._to_device(rows))
        else:
            self.kept.prepare(rows)

    def _to_device(self, rows: Tensor) -> Tensor:
        return rows.to(self.replica.model.flat.device)


def evaluate(oracle: Oracle, rows: Tensor) -> EvalSums:
    """Loss and scores over all ``rows`` of the task, at the model's current parameters."""
    oracle.keep(rows)
    return sum(map(oracle.outcome, torch.split(rows, EVALUATION_BATCH)), EvalSums(0.0, 0))
