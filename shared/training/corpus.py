"""The data of a run: one shard per site to train on, and examples for the server's evaluation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared.base.errors import ConfigError, DataError
from shared.config.answer_section import CHOOSING, ESTIMATING
from shared.config.schema import Config
from shared.config.text_section import CONVERSED
from shared.data.columns import Columns
from shared.data.documents import Documents, space_fairly
from shared.data.examples import Examples
from shared.data.hold_out import hold_out
from shared.data.partition_rules import partition
from shared.data.resolve import documents_of
from shared.generation.chat import chat_form
from shared.generation.prompt_frame import CHAT
from shared.models.model import LanguageModel
from shared.models.tokenizers import ByteTokenizer
from shared.problem.load import load_problem
from shared.problem.problem import Site
from shared.problem.table import NO_EXAMPLES
from shared.tasks.class_names import number_classes
from shared.tasks.classification import label_words
from shared.tasks.task import task_of
from shared.training.example_cache import load_or_make


@dataclass
class Corpus:
    """Training examples, which are partitioned into the sites' shards, and held-out examples."""

    training: Examples
    held_out: Examples
    config: Config
    classes: tuple[str, ...] = ()  # names of the labels, if the data set has classes
    deal: Callable[[int, int], Examples] | None = None  # of sites that have examples of their own
    _shards: dict[int, list[Examples]] = field(default_factory=dict)  # by number of shards

    @classmethod
    def of(cls, config: Config, model: LanguageModel) -> "Corpus":
        """Load the run's data set, make examples for its task, and split them.

        Those of a problem of one's own are as it says.

        Raises:
            ConfigError, DataError: the data set cannot be had, or not be split so.
        """
        if config.model.app:
            return cls.of_problem(config)
        return cls.split(config, load_documents(config), partial(_make_examples, config, model))

    @classmethod
    def own(cls, config: Config, model: LanguageModel) -> "Corpus":
        """Load a site's own data: all but the data set's own evaluation part is for training.

        The server evaluates on other data, so nothing is held out for it.

        Raises:
            DataError: classes that are not those of ``label-words``.
        """
        documents = load_documents(config, own=True)
        parts = documents.parts()
        training = _make_examples(config, model, parts[0] if parts else documents)
        return cls(training, training.take(np.arange(0)), config, documents.classes)

    @classmethod
    def split(
        cls, config: Config, documents: Documents, examples: Callable[[Documents], Examples]
    ) -> "Corpus":
        """Hold out the data set's own evaluation part, or else the last examples of each group.

        Raises:
            DataError: no example is held out.
        """
        if parts := documents.parts():
            training, held_out = map(examples, parts)
            held_out = _thin(config, held_out)
        else:
            whole = examples(documents)
            training, held_out = _hold_out(config, whole)
        return cls(training, held_out, config, documents.classes)

    @classmethod
    def of_problem(cls, config: Config, evaluates: bool = True, data: str = "") -> "Corpus":
        """The examples of a run's own problem: to be shared out, or of each site when it is there.

        Args:
            config: of the run.
            evaluates: whether the problem's examples for evaluation are loaded, as at the server.
            data: a node's own, which the problem is handed; empty: none.

        Raises:
            ConfigError: examples are each site's own, and there are none to evaluate on.
            DataError: they cannot be read, or the problem takes no data of a node.
        """
        loaded = load_problem(config.model.app, config.run.app_dir)
        loaded.check_data(data)
        named = loaded.evaluation() if evaluates else None
        held_out = NO_EXAMPLES if named is None else _thin(config, named)
        if loaded.problem.takes_site:
            if evaluates and named is None:
                raise ConfigError(
                    f"app {config.model.app!r}: evaluation expected in the problem, since its "
                    "examples are each site's own and the server has none to hold out"
                )
            return cls(
                NO_EXAMPLES,
                held_out,
                config,
                deal=lambda number, count: loaded.examples(Site(number, count, data)),
            )
        training = loaded.training()
        if loaded.problem.evaluation is None:
            training, held_out = _hold_out(config, training)
        return cls(training, held_out, config)

    def shard(self, number: int, count: int) -> Examples:
        """The examples of shard ``number`` of ``count``.

        Raises:
            ConfigError: there is no such shard, or the data cannot be partitioned into so many.
        """
        if not 0 <= number < count:
            raise ConfigError(f"a partition-id from 0 to below {count} expected, got {number}")
        if self.deal is not None:
            return self.deal(number, count)
        if count == 1:
            return self.training
        if count not in self._shards:
            c = self.config
            how = (
                c.data.partitioner,
                c.training.seed,
                c.data.partition_alpha,
                c.data.partition_classes,
            )
            parts = partition(self.training.groups, count, *how)
            self._shards[count] = [self.training.take(rows) for rows in parts]
        return self._shards[count][number]

    def evaluation(self) -> Tensor:
        """All held-out examples as rows (n, length) of the task."""
        return torch.from_numpy(self.held_out.batch(torch.arange(len(self.held_out)).numpy()))


def _hold_out(config: Config, whole: Examples) -> tuple[Examples, Examples]:
    """Training and evaluation part by ``eval-fraction``.

    Raises:
        DataError: no example is held out.
    """
    fraction = config.evaluation.fraction
    training, held_out = hold_out(whole, fraction, config.evaluation.blocks)
    if not len(held_out):
        raise DataError(
            f"eval-fraction = {fraction} holds no example out of "
            f"{len(whole)}: at least 2 examples expected; a smaller block-size makes more"
        )
    return training, held_out


def _thin(config: Config, held_out: Examples) -> Examples:
    """At most ``eval-blocks`` examples, spread over all and fairly over the classes."""
    most = min(config.evaluation.blocks, len(held_out))
    return held_out.take(space_fairly(held_out.labels, len(held_out), most))


def load_evaluation(corpus: Corpus, model: LanguageModel) -> Tensor:
    """The rows that the server evaluates on: held out of ``eval-dataset``, or of the corpus.

    No site trains on them.
    """
    config = corpus.config
    if config.evaluation.dataset in ("", config.data.dataset):
        return corpus.evaluation()
    return Corpus.of(with_dataset(config, config.evaluation.dataset), model).evaluation()


def with_dataset(config: Config, dataset: str, columns: Mapping[str, str] | None = None) -> Config:
    """The same run on another data set: what was said of parts of its own is not meant.

    ``columns``: settings of columns that are others there.
    """
    of_parts = {"max_samples": 0, "partition_by": "", "data_part": ""}
    return config.replace(**{"dataset": dataset, **of_parts, **(columns or {})})


def load_documents(config: Config, own: bool = False) -> Documents:
    """The documents of the run's data set; if it classifies, ``label-words`` number the classes.

    ``own``: they are a site's. The order that its folder gives other names may be its own too, so
    the words must be used.

    Raises:
        ConfigError, DataError: the data set cannot be had, or has other classes.
    """
    data = config.data
    documents = documents_of(data.dataset, data.max_samples, data.partition_by, columns_of(config))
    if data.task == "classification":
        if own and Path(data.dataset).is_dir():
            documents = replace(documents, alphabetical=True)
        documents = number_classes(documents, label_words(data))
    return documents.share(data.part)


def columns_of(config: Config) -> Columns:
    """The names of a folder's columns that a run gives, and whether they are conversations."""
    data, text = config.data, config.text
    given = data.text_column, data.label_column, text.prompt_column, text.response_column
    choices = {
        "choice-columns": config.answer.choice_columns,
        "answer-column": config.answer.answer_column,
    }
    return Columns(
        *given,
        converse=data.task in CONVERSED,
        choices=choices if data.task == CHOOSING else None,
        number=config.answer.target_column if data.task == ESTIMATING else None,
    )


def _make_examples(config: Config, model: LanguageModel, documents: Documents) -> Examples:
    """Make the task's examples, or read them from the cache; those of bytes are not cached."""
    task = task_of(config, model)

    def make() -> Examples:
        return task.examples(documents, config.data.block_size)

    if isinstance(model.tokenizer, ByteTokenizer):
        return make()
    settings: dict[str, object] = {
        "dataset": config.data.dataset,
        "max samples": config.data.max_samples,
        "block size": config.data.block_size,
        "grouped by": config.data.partition_by,
        "part": config.data.part,
        "task": [config.data.task, task.classes, config.data.prompt, model.has_head],
        "labels": [config.data.label_words, config.data.label_scoring, config.answer.choice_prompt],
        "columns": str(columns_of(config)),
    }
    if config.answer.prompt_form == CHAT:
        settings["prompt form"] = chat_form(model.tokenizer).identity
    if config.data.task in CONVERSED:
        columns = [config.text.prompt_column, config.text.response_column]
        form = chat_form(model.tokenizer).identity
        settings["conversations"] = [*columns, config.text.packing, form]
    return load_or_make(settings, model.tokenizer.identity, documents, make)
