"""Language modelling: blocks of tokens, and the cross-entropy of each next token."""

from dataclasses import dataclass

from torch import Tensor, nn

from shared.base.errors import ConfigError
from shared.base.metrics import EvalSums
from shared.config.schema import Config
from shared.data.documents import Documents
from shared.data.examples import Examples, cut_blocks
from shared.models.model import LanguageModel, Tokenizer
from shared.models.next_token import example_losses, logits, loss_tensor, next_tokens
from shared.tasks.task import TASKS


@dataclass(frozen=True)
class LanguageModelling:
    """An example is a block of consecutive tokens; every token but the first is predicted."""

    tokenizer: Tokenizer
    classes: int = 0

    def examples(self, documents: Documents, length: int) -> Examples:
        """Join the documents of each group and cut them into blocks of ``length`` tokens."""
        return cut_blocks(documents, self.tokenizer, length)

    def loss(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean loss of the next tokens of rows (B, T), a float64 scalar."""
        return loss_tensor(module, rows)

    def each(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean loss of each block's next tokens, (B,) float64."""
        return example_losses(module, rows)

    def predict(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each."""
        return logits(module, rows).float()

    def labels(self, rows: Tensor) -> Tensor:
        """The token after each (B, T); -100 after the last of a block."""
        return next_tokens(rows)

    def outcome(self, module: nn.Module, rows: Tensor) -> EvalSums:
        """Loss of the next tokens; there are no classes."""
        return EvalSums(float(loss_tensor(module, rows)) * len(rows), len(rows))


@TASKS.register("language-modelling")
def language_modelling(config: Config, model: LanguageModel) -> LanguageModelling:
    """Make the task for any model without a head.

    Raises:
        ConfigError: the model is a classifier.
    """
    if model.has_head:
        raise ConfigError(
            f"task language-modelling: {config.model.name!r} is a classifier, a causal language "
            "model expected; or use task classification"
        )
    return LanguageModelling(model.tokenizer)
