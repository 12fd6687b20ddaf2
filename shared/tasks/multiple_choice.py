"""Multiple choice: which of a question's own choices a causal model finds likeliest as its answer.

As in language model benchmarks (Brown et al. 2020, https://arxiv.org/abs/2005.14165, section 2.4):
a choice's score is the log-likelihood of its tokens after the question, or their mean.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from shared.base.errors import ConfigError, DataError
from shared.base.metrics import EvalSums
from shared.config.answer_section import CHOOSING
from shared.config.schema import Config
from shared.data.documents import Documents
from shared.data.examples import Examples, examples_of_rows
from shared.generation.prompt_frame import PromptFrame, prompt_frame
from shared.likelihood.continuations import NONE, ContinuationTree, reads_trees, score_continuations
from shared.models.model import LanguageModel
from shared.tasks.task import TASKS
from shared.tasks.verbaliser import Verbaliser

CHOICE = -2  # stands before the tokens of each choice
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class MultipleChoice:
    """The loss is the cross-entropy of a question's choices.

    A row is the number of the right choice, then the tokens of the question, then for each choice
    CHOICE and its tokens, then -1 up to the length of the longest row.
    """

    verbaliser: Verbaliser  # the prompt around a question
    frame: PromptFrame  # what the choices follow
    is_mean: bool  # scores are divided by the number of tokens
    classes: int = 0
    score_names: tuple[str, ...] = ("accuracy",)
    is_capturable: bool = False  # how many choices there are is read from the rows

    def examples(self, documents: Documents, length: int) -> Examples:
        """Make an example of each question, cut so that each of its choices fits ``length``.

        Raises:
            DataError: documents without choices, or a choice that leaves no room for a question.
        """
        choices, labels = documents.choices, documents.labels
        if choices is None or labels is None:
            raise DataError(
                "questions with choices expected, got documents without: task multiple-choice "
                "needs a folder of tables with columns of questions, choices and answers"
            )

        def encode(row: int) -> Ids:
            return self._encode(documents.texts[row], choices[row], length)

        return examples_of_rows(documents, np.asarray(labels, np.int64), encode)

    def _encode(self, question: str, choices: tuple[str, ...], length: int) -> Ids:
        parts = [self.frame.label(each) for each in choices]
        longest = max(map(len, parts))
        try:
            text = replace(self.verbaliser, reserve=longest - 1).encode(question, length)
        except ConfigError as error:
            place = f"question {question[:40]!r} with choices {choices}"
            raise DataError(f"{place}: {error}") from error
        return np.concatenate([text, *([CHOICE, *part] for part in parts)]).astype(np.int64)

    def loss(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Mean cross-entropy of the choices of rows (B, 1 + T), a float64 scalar."""
        return self.each(module, rows).mean()

    def each(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Cross-entropy of each question's choices, (B,) float64."""
        return F.cross_entropy(self.predict(module, rows), rows[:, 0], reduction="none").double()

    def predict(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Scores (B, k) float32 of the choices; -inf where a question has fewer."""
        text, lengths, tree = _divide(rows[:, 1:])
        sums, counts = score_continuations(module, text, lengths, tree), tree.lengths()
        scores = sums / counts.clamp(min=1) if self.is_mean else sums
        return scores.masked_fill(counts == 0, -torch.inf)

    def labels(self, rows: Tensor) -> Tensor:
        """The numbers (B,) of the right choices."""
        return rows[:, 0]

    def outcome(self, module: nn.Module, rows: Tensor) -> EvalSums:
        """Loss, and how many questions are answered right."""
        scores = self.predict(module, rows)
        total = F.cross_entropy(scores, rows[:, 0], reduction="none").sum(dtype=torch.float64)
        right = int((scores.argmax(1) == rows[:, 0]).sum())
        return EvalSums(float(total), len(rows), sums={"accuracy": float(right)})


def _divide(rows: Tensor) -> tuple[Tensor, Tensor, ContinuationTree]:
    """Questions (B, T), their lengths (B,), and the trees of their choices, from rows (B, W)."""
    branch = (rows == CHOICE).cumsum(1)
    columns = torch.arange(rows.shape[1], device=rows.device)
    lengths = ((branch == 0) & (rows >= 0)).sum(1)
    is_token = (branch > 0) & (rows >= 0)
    marks = torch.where(rows == CHOICE, columns, 0).cummax(1).values
    depth = torch.where(is_token, columns - marks, 0)
    first = int(lengths.min())  # columns before it are no node
    sees = (branch[:, :, None] == branch[:, None]) & is_token[:, None]
    sees = (sees & (columns <= columns[:, None]))[:, first:, first:]
    sees = F.pad(sees, (1, 0, 1, 0))
    sees[:, :, 0] = True  # the last token of the question
    sees |= torch.eye(sees.shape[1], dtype=torch.bool, device=rows.device)
    shape = (len(rows), int(branch.max()), int(depth.max()))
    example, column = is_token.nonzero(as_tuple=True)
    place = (example, branch[is_token] - 1, depth[is_token] - 1)
    targets = torch.full(shape, NONE, device=rows.device)
    targets[place] = rows[is_token]
    nodes = torch.zeros(shape, dtype=torch.long, device=rows.device)
    nodes[place] = torch.where(depth[is_token] > 1, column - first, 0)
    tokens = F.pad(rows[:, first:].clamp(min=0), (1, 0))
    tree = ContinuationTree(tokens, F.pad(depth[:, first:], (1, 0)), sees, nodes, targets)
    return rows[:, : int(lengths.max())], lengths, tree


@TASKS.register(CHOOSING)
def multiple_choice(config: Config, model: LanguageModel) -> MultipleChoice:
    """Make the task for a causal language model.

    Raises:
        ConfigError: the model is a classifier, or choices are to be scored by their first tokens.
    """
    if model.has_head:
        raise ConfigError(
            f"task multiple-choice: {config.model.name!r} is a classifier, a causal language "
            "model expected, which says how likely each choice is"
        )
    if config.data.label_scoring == "first":
        raise ConfigError(
            "label-scoring = 'first' with task multiple-choice: first tokens of choices may be "
            "equal; use sum or mean"
        )
    reads_trees(model.module)  # tried now, at parameters that nobody has moved
    frame = prompt_frame(model.tokenizer, config.answer.choice_prompt, config.answer.prompt_form)
    return MultipleChoice(
        Verbaliser.of(model.tokenizer, frame, ()),
        frame,
        config.data.label_scoring == "mean",
    )
