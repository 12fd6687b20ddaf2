"""A problem of one's own is tried on a batch before the first round, so that faults are named.

Sites measure one batch many times, at perturbed parameters. That needs an example, a loss and a
module that are functions of their arguments, and parameters that only torch functions read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from shared.base.errors import ConfigError
from shared.base.flat import FlatModel
from shared.directions import Directions
from shared.estimation.perturber import Perturber
from shared.problem.task import ProblemTask
from shared.randomness.streams import probe_keys
from shared.replica.replica import digest_of

TRIED = 4  # examples
RADIUS = 1e-2  # a perturbation that any parameter shows in the loss
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # relative, of two ways to perturb


@dataclass(frozen=True)
class ProblemTrial:
    """Tries a problem; leaves its model as it was, to the bit."""

    task: ProblemTask
    model: FlatModel
    directions: Directions
    perturber: Perturber

    def check(self, rows: Tensor) -> None:
        """Measure some of the rows (B, 1), and compare with what the measurement should be.

        Raises:
            ConfigError: examples, loss or module change from call to call, a loss is not finite, a
                buffer or parameter is written, or a parameter is read past torch functions.
        """
        rows, app = rows[:TRIED], self.task.app
        if not len(rows):
            return
        self._check_examples(rows)
        before = self._state()
        with torch.inference_mode():
            losses, again = (self.task.each(self.model.module, rows) for _ in range(2))
            self.task.outcome(self.model.module, rows)
        if not losses.isfinite().all():
            raise ConfigError(
                f"app {app!r}: finite losses expected of the untrained model, got {losses.tolist()}"
            )
        if not torch.equal(losses, again):
            raise ConfigError(
                f"app {app!r}: a loss that is a function of parameters and batch expected, but two "
                f"calls gave {losses.tolist()} and {again.tolist()}: draw nothing by chance in it"
            )
        changed = [name for name, digest in self._state().items() if digest != before[name]]
        if changed:
            raise ConfigError(
                f"app {app!r}: loss and metrics must write no parameter or buffer, but "
                f"{changed[0]} changed: a replica would no longer be that of the ledger"
            )
        self._check_perturbation(rows)

    def _check_examples(self, rows: Tensor) -> None:
        """Read a batch twice: an example that is drawn anew each time cannot be measured again."""
        one, other = (tree_flatten(self.task.table.batch(rows))[0] for _ in range(2))
        for first, second in zip(one, other, strict=True):
            if isinstance(first, Tensor) and not _is_same(first, second):
                raise ConfigError(
                    f"app {self.task.app!r}: the same example at every reading expected, but two "
                    "readings differ: take random transforms out of its Dataset"
                )

    def _state(self) -> dict[str, bytes]:
        tensors = [*self.model.module.named_parameters(), *self.model.module.named_buffers()]
        return {name: digest_of(tensor.detach().contiguous()) for name, tensor in tensors}

    def _check_perturbation(self, rows: Tensor) -> None:
        """Compare losses at a perturbed point by torch functions with those at written parameters.

        Raises:
            ConfigError: they differ: some parameter is read in a way that is not seen.
        """
        (key,) = probe_keys(0, 1)
        flat, module = self.model.flat, self.model.module
        with torch.inference_mode():
            with self.perturber.at(key, RADIUS):
                ours = self.task.each(module, rows)
            saved = flat.clone()
            try:
                self.directions.perturb_(flat, saved, 0, key, RADIUS)
                self.model.layout.clear_padding_(flat)
                plain = self.task.each(module, rows)
            finally:
                flat.copy_(saved)
        if not torch.allclose(ours, plain, TOLERANCE[flat.dtype], 1e-4, equal_nan=True):
            raise ConfigError(
                f"app {self.task.app!r}: parameters that only torch functions read expected, but a "
                f"perturbation gives losses {ours.tolist()} instead of {plain.tolist()}: leave out "
                "numpy, compiled or scripted parts and copies of parameters"
            )


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
