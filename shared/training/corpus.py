"""A data set as a run sees it: one shard per site, and held-out examples for the server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared.base.errors import ConfigError, DataError
from shared.config.schema import Config
from shared.data.documents import Documents, evenly_spaced
from shared.data.examples import Examples, hold_out
from shared.data.partition_rules import shard
from shared.data.resolve import documents_of
from shared.models.model import LanguageModel
from shared.models.tokenizers import ByteTokenizer
from shared.tasks.classification import label_words
from shared.tasks.task import task_of
from shared.training.example_cache import load_or_make


@dataclass
class Corpus:
    """Examples that are trained on, dealt to sites, and blocks that are not."""

    training: Examples
    held_out: Examples
    config: Config
    classes: tuple[str, ...] = ()  # names of the labels, where the data set has classes
    _shards: dict[int, list[Examples]] = field(default_factory=dict)  # by number of shards

    @classmethod
    def of(cls, config: Config, model: LanguageModel) -> "Corpus":
        """Load what ``config`` names, make examples for its task, and split them."""
        documents = documents_of(config.dataset, config.max_samples, config.partition_by)
        documents = documents.share(config.data_part)
        return cls.split(config, documents, partial(_examples, config, model))

    @classmethod
    def own(cls, config: Config, model: LanguageModel) -> "Corpus":
        """A site's own data: all are trained on, but for what the data set itself holds out.

        The server evaluates on others, so nothing is held out for it.

        Raises:
            DataError: classes that are not those of ``label-words``.
        """
        documents = documents_of(config.dataset)
        if config.task == "classification" and Path(config.dataset).is_dir():
            documents = renumber_labels(documents, label_words(config))
        parts = documents.parts()
        training = _examples(config, model, parts[0] if parts else documents)
        return cls(training, training.take(np.arange(0)), config, documents.classes)

    @classmethod
    def split(
        cls, config: Config, documents: Documents, examples: Callable[[Documents], Examples]
    ) -> "Corpus":
        """Hold out what the data set itself does, or else the last examples of each group."""
        if parts := documents.parts():
            training, held_out = map(examples, parts)
            most = min(config.eval_blocks, len(held_out))
            held_out = held_out.take(evenly_spaced(len(held_out), most))
        else:
            blocks = examples(documents)
            training, held_out = hold_out(blocks, config.eval_fraction, config.eval_blocks)
            if not len(held_out):
                raise DataError(
                    f"eval-fraction = {config.eval_fraction} holds no example out of {len(blocks)}"
                )
        return cls(training, held_out, config, documents.classes)

    def shard(self, number: int, count: int) -> Examples:
        """The examples of shard ``number`` of ``count``.

        Raises:
            ConfigError: there is no such shard, or the data cannot be dealt to so many.
        """
        if not 0 <= number < count:
            raise ConfigError(f"a partition-id from 0 to below {count} expected, got {number}")
        if count == 1:
            return self.training
        if count not in self._shards:
            c = self.config
            how = c.partitioner, c.seed, c.partition_alpha, c.partition_classes
            dealt = shard(self.training.groups, count, *how)
            self._shards[count] = [self.training.take(rows) for rows in dealt]
        return self._shards[count][number]

    def evaluation(self) -> Tensor:
        """All held-out examples as the task's rows."""
        return torch.from_numpy(self.held_out.batch(torch.arange(len(self.held_out)).numpy()))


def with_dataset(config: Config, dataset: str) -> Config:
    """The same run on another data set: what was said of parts of its own is not meant."""
    return config.replace(dataset=dataset, max_samples=0, partition_by="", data_part="")


def renumber_labels(documents: Documents, words: Sequence[str]) -> Documents:
    """Labels of a folder's documents as every site numbers them: by the order of ``words``.

    A class is called by its word or by its number: a folder may lack some classes, and how it would
    number its own says nothing about the others'.

    Raises:
        DataError: a class is called otherwise; names it, and the words.
    """
    known = {word: number for number, word in enumerate(words)}
    numbers = {str(number): number for number in range(len(words))}
    if not known.keys() & numbers.keys() and set(documents.classes) <= numbers.keys():
        known = numbers
    if unknown := [name for name in documents.classes if name not in known]:
        raise DataError(
            f"a site's classes must be called as label-words says, {', '.join(words)}, or all by "
            f"their numbers; got {', '.join(unknown)}"
        )
    if documents.labels is None:
        return documents
    labels = [known[documents.classes[label]] for label in documents.labels]
    revision = f"{documents.revision}, as {'/'.join(words)}" if documents.revision else ""
    return replace(documents, labels=labels, classes=tuple(words), revision=revision)


def _examples(config: Config, model: LanguageModel, documents: Documents) -> Examples:
    """The task's examples, kept in the cache; those of bytes are as soon made as read."""
    task = task_of(config, model)

    def make() -> Examples:
        return task.examples(documents, config.block_size)

    if isinstance(model.tokenizer, ByteTokenizer):
        return make()
    settings = {
        "dataset": config.dataset,
        "max samples": config.max_samples,
        "block size": config.block_size,
        "grouped by": config.partition_by,
        "part": config.data_part,
        "task": [config.task, task.classes, config.prompt, model.has_head],
    }
    return load_or_make(settings, model.tokenizer.identity, documents, make)
