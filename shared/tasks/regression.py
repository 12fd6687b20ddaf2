"""Regression: a model's head, or a readout of its hidden states, estimates one number."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.base.errors import ConfigError
from shared.base.metrics import EvalSums, number_sums
from shared.config.answer_section import ESTIMATING
from shared.config.schema import Config
from shared.data.documents import Documents
from shared.data.examples import Examples, examples_with_targets
from shared.features.labelled_texts import LabelledTexts, texts_of
from shared.features.readout import LinearBatch
from shared.features.readout_logits import ReadoutLogits, readout_logits
from shared.models.model import LanguageModel
from shared.tasks.classification import head_logits
from shared.tasks.task import TASKS

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Regression(LabelledTexts):
    """The loss is the mean squared error of standardised numbers: (number − mean) / scale.

    A row is the bits of a float64, the number of a text, then the text's tokens, then -1 up to the
    length of the longest text.
    """

    encode: Callable[[str, int], Ids]  # (text, most) -> at most so many tokens
    output: Callable[[nn.Module, Tensor, Tensor], Tensor]  # (module, tokens, lengths) -> (B, 1)
    mean: float
    scale: float
    readout: ReadoutLogits | None = None  # what gives the output, if the model has a readout
    classes: int = 0
    has_targets: bool = True  # the first column of a row is none of its tokens

    @property
    def score_names(self) -> tuple[str, ...]:
        """The names of the sums that scores are made of."""
        return tuple(number_sums(np.zeros(1), np.zeros(1)))

    def examples(self, documents: Documents, length: int) -> Examples:
        """Make an example of each text that has a number; tokens beyond ``length`` are cut off."""
        return examples_with_targets(documents, lambda text: self.encode(text, length))

    def loss(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean squared error of rows (B, 1 + T), a float64 scalar."""
        return self.each(module, rows).mean()

    def each(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Squared error of each standardised number, (B,) float64."""
        return (self._estimate(module, rows).double() - self._standard(rows)).square()

    def predict(self, module: nn.Module, rows: Tensor) -> Tensor:
        """The estimates (B, 1) float32, in the numbers' own unit."""
        return self._estimate(module, rows)[:, None] * self.scale + self.mean

    def labels(self, rows: Tensor) -> Tensor:
        """The numbers (B,) float64 of rows."""
        return rows[:, 0].contiguous().view(torch.float64)

    def outcome(self, module: nn.Module, rows: Tensor) -> EvalSums:
        """Loss, and sums of errors and of what correlations are made of, in the numbers' unit.

        Numbers and estimates are taken less ``mean``: squares of dates, say, leave no digits to
        their spread.
        """
        estimates, numbers = self._estimate(module, rows).double(), self._standard(rows)
        total = (estimates - numbers).square().sum()
        pairs = self.scale * torch.stack([numbers, estimates], 1).cpu().numpy()
        return EvalSums(float(total), len(rows), sums=number_sums(*pairs.T), pairs=pairs)

    def linear_batch(self, module: nn.Module, rows: Tensor) -> LinearBatch:
        """Features and errors of rows (B, 1 + T), for the closed form of a readout's gradient.

        Raises:
            ConfigError: the model has no readout.
        """
        with torch.inference_mode():
            features, base = self.require_readout().inputs(module, *texts_of(rows))
            readout: nn.Module = module.get_submodule("readout")
            outputs: Tensor = readout(features, base).float()
            return LinearBatch.of_numbers(features, outputs, self._standard(rows))

    def _estimate(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Standardised estimates (B,) in float32."""
        return self.output(module, *texts_of(rows)).float()[:, 0]

    def _standard(self, rows: Tensor) -> Tensor:
        return (self.labels(rows) - self.mean) / self.scale


@TASKS.register(ESTIMATING)
def regression(config: Config, model: LanguageModel) -> Regression:
    """Estimate by the model's head of one output, or by a readout of features.

    Raises:
        ConfigError: the model's head has several outputs.
    """
    outputs = int(getattr(model.module.config, "num_labels", 0)) if model.has_head else 0
    if outputs != 1:
        raise ConfigError(
            f"task regression: a head of one output expected, that of {model.name!r} has "
            f"{outputs}; choose a model without a head, which gets one"
        )
    readout = readout_logits(model, config, ())
    return Regression(
        model.tokenizer.sequence,
        readout or head_logits(model.tokenizer.pad),
        config.answer.target_mean,
        config.answer.target_scale,
        readout,
    )
