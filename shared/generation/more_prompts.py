"""Further prompts in which a model reads the same text, beside the one that its tokens have.

Features after several prompts tell more of a text than those after one: each prompt asks for
something else, and errors of one are not those of another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from shared.base.errors import ConfigError
from shared.config.schema import Config
from shared.generation.prompt_frame import CHAT, TURN, PromptFrame, prompt_frame
from shared.models.model import LanguageModel, Tokenizer

BETWEEN = "||"  # in the setting more-prompts
PADDING = -1
Around = tuple[NDArray[np.int64], ...]  # before a text, between its copies, and after it


@dataclass(frozen=True)
class MorePrompts:
    """The tokens around a text in the prompt of a run, and in further prompts."""

    own: Around
    others: tuple[Around, ...]

    @classmethod
    def of(cls, config: Config, model: LanguageModel, own: PromptFrame) -> "MorePrompts":
        """Read the setting ``more-prompts`` of a run whose prompt is ``own``.

        Raises:
            ConfigError: a prompt without ``{text}``, turns that the template does not take, or a
                prompt with which the model could not read a block.
        """
        texts = [text.strip() for text in config.answer.more_prompts.split(BETWEEN)]
        frames = [_frame(config, model.tokenizer, text) for text in texts if text]
        prompts = cls(own.around, tuple(frame.around for frame in frames))
        prompts.check(config.data.block_size, model.positions)
        return prompts

    def __len__(self) -> int:
        return 1 + len(self.others)

    def check(self, block: int, positions: int) -> None:
        """Check that all blocks of at most so many tokens fit into a model's positions.

        Raises:
            ConfigError: one does not.
        """
        room = (block - _count(self.own)) // (len(self.own) - 1)
        for number, around in enumerate(self.others, start=2):
            length = _count(around) + (len(around) - 1) * room
            if length > positions:
                raise ConfigError(
                    f"more-prompts: at most {positions} tokens expected, the model's positions, "
                    f"got {length} with prompt {number} around a text of block-size {block}"
                )

    def read(self, number: int, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of the same texts in a prompt, padded with -1, and their lengths.

        Args:
            number: of the prompt; 1 is the one that ``tokens`` have.
            tokens: of texts in the first prompt (B, T).
            lengths: of the rows (B,).
        """
        if number == 1:
            return tokens, lengths
        sizes = (lengths - _count(self.own)) // (len(self.own) - 1)
        first, *rest = (
            torch.as_tensor(piece, dtype=tokens.dtype, device=tokens.device)
            for piece in self.others[number - 2]
        )
        start, rows = len(self.own[0]), []
        for row, size in zip(tokens, sizes.tolist(), strict=True):
            text = row[start : start + size]
            rows.append(torch.cat([first, *(part for piece in rest for part in (text, piece))]))
        longer = sizes * len(rest) + sum(map(len, (first, *rest)))
        return pad_sequence(rows, batch_first=True, padding_value=PADDING), longer


def _frame(config: Config, tokenizer: Tokenizer, text: str) -> PromptFrame:
    """A prompt that begins with a role is turns of a chat, whatever the form of the first is."""
    form = CHAT if TURN.match(text) else config.answer.prompt_form
    return prompt_frame(tokenizer, text, form)


def _count(around: Sequence[NDArray[np.int64]]) -> int:
    return sum(map(len, around))
