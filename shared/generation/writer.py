"""A causal model continues prompts: greedy or sampled with a seed, several at a time, cached."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.base.errors import ConfigError
from shared.config.text_section import TextSettings
from shared.models.model import Tokenizer, to_transformers

Ids = NDArray[np.int64]
TOGETHER = 16  # prompts of one batch
TAIL = 48  # newest tokens in which a stop word is looked for


@dataclass(frozen=True)
class Writer:
    """Continues prompts with the module's parameters as they are, by transformers' ``generate``.

    Prompts of one batch are padded at the left and masked there. What is drawn depends on the seed
    and on the prompts alone.
    """

    tokenizer: Tokenizer
    ends: tuple[int, ...]  # tokens that end a text
    settings: TextSettings
    positions: int  # of the model
    seed: int = 0

    def write(self, module: nn.Module, prompts: Sequence[Ids], most: int) -> list[Ids]:
        """Up to ``most`` new tokens for each prompt, without the token that ends the text.

        A prompt that leaves no room for them in the model loses its first tokens.

        Raises:
            ConfigError: the module cannot generate.
        """
        module = to_transformers(module)
        if not hasattr(module, "generate"):
            raise ConfigError(
                f"a model of transformers that generates expected, got {type(module).__name__}"
            )
        texts: list[Ids] = []
        for first in range(0, len(prompts), TOGETHER):
            texts += self._batch(module, prompts[first : first + TOGETHER], most)
        return texts

    def text(self, tokens: Ids) -> str:
        """The text of new tokens, up to the first stop word."""
        marks = getattr(self.tokenizer, "marks", {})
        chosen = np.array([t for t in tokens.tolist() if t not in marks], np.int64)
        plain = self.tokenizer.decode(chosen)
        ends = [at for word in self.settings.stops if (at := plain.find(word)) >= 0]
        return plain[: min(ends)] if ends else plain

    def _batch(self, module: Any, prompts: Sequence[Ids], most: int) -> list[Ids]:  # noqa: ANN401
        most = min(most, self.positions - 1)
        prompts = [prompt[-(self.positions - most) :] for prompt in prompts]
        longest = max(1, *map(len, prompts))
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            if len(prompt):
                tokens[row, -len(prompt) :] = torch.from_numpy(np.ascontiguousarray(prompt))
                mask[row, -len(prompt) :] = 1
        device = next(module.parameters()).device
        devices = [device] if device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=devices),
            torch.no_grad(),
            _with_config(module, self._config(most)),
        ):
            torch.manual_seed(self.seed)
            out = module.generate(
                tokens.to(device),
                attention_mask=mask.to(device),
                stopping_criteria=self._stops(longest),
            )
        return [self._cut(row) for row in out[:, longest:].cpu().numpy()]

    def _config(self, most: int) -> Any:  # noqa: ANN401
        """What ``generate`` is to do, in place of what the model's own file says."""
        from transformers import GenerationConfig

        kind: Any = GenerationConfig
        samples = self.settings.temperature > 0
        drawn = {"temperature": self.settings.temperature, "top_p": self.settings.top_p, "top_k": 0}
        return kind(
            max_new_tokens=most, do_sample=samples, num_beams=1, use_cache=True,
            eos_token_id=list(self.ends), pad_token_id=self.ends[0], **(drawn if samples else {}),
        )  # fmt: skip

    def _stops(self, longest: int) -> Any:  # noqa: ANN401
        from transformers import StoppingCriteriaList

        words = self.settings.stops
        return StoppingCriteriaList([_AtWords(self.tokenizer, words, longest)] if words else [])

    def _cut(self, tokens: Ids) -> Ids:
        ends = np.flatnonzero(np.isin(tokens, self.ends))
        return tokens[: ends[0]] if len(ends) else tokens


@contextmanager
def _with_config(module: Any, config: Any) -> Iterator[None]:  # noqa: ANN401
    """Give a module another configuration of ``generate``: one that is passed is only merged."""
    before, module.generation_config = module.generation_config, config
    try:
        yield
    finally:
        module.generation_config = before


@dataclass
class _AtWords:
    """Tells ``generate`` which texts have a stop word in their newest tokens."""

    tokenizer: Tokenizer
    words: tuple[str, ...]
    longest: int  # tokens of the prompts with their padding
    done: dict[int, bool] = field(default_factory=dict)

    def __call__(self, tokens: Tensor, scores: object, **more: object) -> Tensor:
        del scores, more
        for row, text in enumerate(tokens[:, self.longest :][:, -TAIL:].cpu().numpy()):
            plain = self.tokenizer.decode(text)
            self.done[row] = self.done.get(row, False) or any(word in plain for word in self.words)
        flags = [self.done[row] for row in range(len(tokens))]
        return torch.tensor(flags, device=tokens.device)
