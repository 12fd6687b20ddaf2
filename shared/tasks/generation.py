"""Generation: trained as instructions are, and evaluated by the texts that the model writes."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from shared.base.errors import ConfigError
from shared.base.metrics import EvalSums
from shared.config.schema import Config
from shared.data.documents import Documents
from shared.data.examples import Examples
from shared.generation.chat import chat_form
from shared.generation.text_scores import TEXT_SCORES, check_installed, sum_scores
from shared.generation.writer import Writer
from shared.models.model import LanguageModel
from shared.tasks.instruction import Instruction, refuse_classifier
from shared.tasks.scored_tokens import split_row
from shared.tasks.task import TASKS


@dataclass(frozen=True)
class Generation:
    """Loss and examples are those of instructions; scores are of generated responses.

    ``outcome`` is of the loss alone, since a forward pass may begin with what is kept of its rows;
    ``text_sums`` writes, with the whole model.
    """

    base: Instruction
    writer: Writer
    classes: int = 0
    score_names: tuple[str, ...] = TEXT_SCORES

    def examples(self, documents: Documents, length: int) -> Examples:
        """Make an example of each conversation, of at most ``length`` tokens."""
        return self.base.examples(documents, length)

    def loss(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean loss of the responses of rows (B, T), a float64 scalar."""
        return self.base.loss(module, rows)

    def each(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean loss of each row's response, (B,) float64."""
        return self.base.each(module, rows)

    def each_of_points(self, module: nn.Module, rows: Tensor, points: int) -> Tensor:
        """The same of the batches of several points, one after the other."""
        return self.base.each_of_points(module, rows, points)

    def predict(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each."""
        return self.base.predict(module, rows)

    def labels(self, rows: Tensor) -> Tensor:
        """The token after each (B, T) if it is of a response, else -100."""
        return self.base.labels(rows)

    def outcome(self, module: nn.Module, rows: Tensor) -> EvalSums:
        """Loss of the responses."""
        return self.base.outcome(module, rows)

    def text_sums(self, module: nn.Module, rows: Tensor) -> dict[str, float]:
        """Scores of what the model writes after each prompt, summed over rows (B, T)."""
        pairs = [split_row(row) for row in rows.cpu().numpy().astype(np.int64)]
        most = self.writer.settings.max_new_tokens
        written = self.writer.write(module, [prompt for prompt, _ in pairs], most)
        texts = [self.writer.text(tokens) for tokens in written]
        return sum_scores(texts, [self.writer.text(response) for _, response in pairs])


@TASKS.register("generation")
def generation(config: Config, model: LanguageModel) -> Generation:
    """Make the task for a causal model.

    Raises:
        ConfigError: the model is a classifier, has no room for a response, or ``rouge-score`` is
            not installed.
    """
    refuse_classifier(config, model)
    check_installed()
    if config.text.max_new_tokens >= model.positions:
        raise ConfigError(
            f"max-new-tokens below {model.positions} expected, the positions of "
            f"{config.model.name!r}, got {config.text.max_new_tokens}"
        )
    form = chat_form(model.tokenizer)
    return Generation(Instruction(form, model.tokenizer.start), writer_of(config, model, form.ends))


def writer_of(config: Config, model: LanguageModel, ends: tuple[int, ...]) -> Writer:
    """What writes texts with a run's model; its seed is the run's."""
    seed = config.training.seed
    return Writer(model.tokenizer, ends, config.text, model.positions, seed)
