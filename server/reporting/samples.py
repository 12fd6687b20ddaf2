"""Samples while it trains: what the model writes after fixed prompts, at each evaluation.

``samples.jsonl`` holds an object per evaluation, ``samples.md`` the same for readers.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from server.reporting.sample_pages import SAMPLES_JSONL, SAMPLES_MD, page_of, read_samples
from shared.base.errors import ConfigError
from shared.base.files import write_atomically
from shared.config.schema import Config
from shared.config.text_section import CONVERSED, SEPARATOR
from shared.data.conversations import CONTENT, ROLE, USER
from shared.data.documents import space_evenly
from shared.generation.chat import chat_form
from shared.generation.writer import Writer
from shared.models.model import LanguageModel
from shared.tasks.generation import writer_of
from shared.tasks.scored_tokens import split_row
from shared.training.oracle import Oracle

SHOWN = 400  # last characters of a prompt
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class SamplePrompt:
    """A prompt as it is shown, its tokens, and the response that a data set has for it."""

    text: str
    tokens: Ids
    expected: str = ""


class Samples:
    """Lets a run's model write after its ``sample-prompts``, and keeps the texts in the folder."""

    def __init__(self, folder: Path, config: Config, oracle: Oracle, held_out: Tensor) -> None:
        """Read the prompts.

        Args:
            folder: of the run.
            config: of the run.
            oracle: whose model writes, with its parameters as they are then.
            held_out: rows of the task, from which prompts may be taken.

        Raises:
            ConfigError: a file of prompts is missing or empty.
        """
        self._folder, self._oracle, self._most = folder, oracle, config.text.sample_tokens
        model = oracle.language_model
        if config.text.sample_prompts:
            converses = config.data.task in CONVERSED
            ends = chat_form(model.tokenizer).ends if converses else (model.tokenizer.end,)
            self._writer = writer_of(config, model, ends)
            self._prompts = prompts_of(config, model, self._writer, held_out)
        else:
            self._prompts = []

    def add(self, round_: int) -> None:
        """Write samples of a round, unless there are none to write or it has some already."""
        records = read_samples(self._folder)
        if not self._prompts or any(record["round"] >= round_ for record in records):
            return
        prompts = [prompt.tokens for prompt in self._prompts]
        written = self._writer.write(self._oracle.language_model.module, prompts, self._most)
        samples = [
            {"prompt": prompt.text, "text": self._writer.text(tokens), "expected": prompt.expected}
            for prompt, tokens in zip(self._prompts, written, strict=True)
        ]
        records.append({"round": round_, "samples": samples})
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_atomically(self._folder / SAMPLES_JSONL, lines.encode("utf-8", "replace"))
        write_atomically(self._folder / SAMPLES_MD, page_of(records).encode("utf-8", "replace"))


def prompts_of(
    config: Config, model: LanguageModel, writer: Writer, held_out: Tensor
) -> list[SamplePrompt]:
    """The prompts that ``sample-prompts`` means: texts, a file's lines, or held-out ones.

    Raises:
        ConfigError: the file is missing or empty, or the template does not take a prompt.
    """
    given = config.text.sample_prompts
    if given.isdecimal():
        rows = held_out.numpy()[space_evenly(len(held_out), min(int(given), len(held_out)))]
        return [_prompt_of_row(config, writer, row) for row in rows]
    form, is_chat = chat_form(model.tokenizer), config.data.task in CONVERSED
    start, encode = model.tokenizer.start, model.tokenizer.encode
    return [
        SamplePrompt(
            text,
            form.prompt([{ROLE: USER, CONTENT: text}])
            if is_chat
            else np.concatenate([start, encode(text)]),
        )
        for text in texts_of(given)
    ]


def texts_of(given: str) -> list[str]:
    """The prompts that are given as texts, or as a file with one a line.

    Raises:
        ConfigError: what looks like a file is none, or has no line.
    """
    path = Path(given)
    is_file = len(given) < 256 and path.is_file()
    if not is_file and SEPARATOR not in given and (path.suffix in (".txt", ".md") or "/" in given):
        raise ConfigError(
            f"sample-prompts: no file {given!r} is here; a file with a prompt per line expected, "
            f"texts separated by {SEPARATOR}, or a number of held-out prompts"
        )
    lines = path.read_text(encoding="utf-8").split("\n") if is_file else given.split(SEPARATOR)
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ConfigError(f"sample-prompts: a prompt at least expected, {given!r} has none")
    return texts


def _prompt_of_row(config: Config, writer: Writer, row: Ids) -> SamplePrompt:
    """The prompt of a held-out example, or the first half of a block of text."""
    if config.data.task in CONVERSED:
        prompt, response = split_row(row)
    else:
        prompt, response = np.split(row[row >= 0], [(row >= 0).sum() // 2])
    return SamplePrompt(writer.text(prompt)[-SHOWN:], prompt, writer.text(response).strip())
