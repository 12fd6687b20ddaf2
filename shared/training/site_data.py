"""The examples of a site: for its queries, for its gradients, and for its evaluation."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shared.base.errors import DataError
from shared.config.schema import Config
from shared.data.documents import space_fairly
from shared.data.examples import Examples
from shared.data.hold_out import hold_out
from shared.models.model import LanguageModel
from shared.problem.model import ProblemModel
from shared.training.corpus import Corpus, with_dataset

LOG = logging.getLogger("dandelion")


@dataclass(frozen=True)
class Shards:
    """One site's examples; often those of queries and gradients are the same object."""

    queries: Examples
    gradients: Examples
    held_out: Examples | None = None  # for the site's evaluation, if sites evaluate


@dataclass(frozen=True)
class SiteData:
    """The data set of the queries, and that of the gradients: often the same object."""

    queries: Corpus
    gradients: Corpus
    config: Config

    @classmethod
    def of(
        cls,
        config: Config,
        model: LanguageModel,
        own: str = "",
        own_bp: str = "",
        columns: Mapping[str, str] | None = None,
    ) -> "SiteData":
        """Load the data sets ``dataset`` and ``bp-dataset``, or a site's own in their place.

        Logs once if these are two. The data of a problem of one's own are what it says.

        Args:
            config: of the run.
            model: whose tokenizer makes the examples.
            own: the site's own data; empty: the run deals them.
            own_bp: the same, for gradients.
            columns: settings of columns that are others in its own data.
        """
        if isinstance(model, ProblemModel):
            both = Corpus.of_problem(config, evaluates=False, data=own)
            return cls(both, both, config)
        queries = (
            Corpus.own(with_dataset(config, own, columns), model)
            if own
            else Corpus.of(config, model)
        )
        name = own_bp or config.bp.dataset
        if name in ("", queries.config.data.dataset) or (own and name == config.data.dataset):
            return cls(queries, queries, config)
        other = with_dataset(config, name, columns if own_bp else None)
        gradients = Corpus.own(other, model) if own_bp else Corpus.of(other, model)
        LOG.warning(
            "queries are measured on %s (%d examples), gradients taken on %s (%d examples)",
            queries.config.data.dataset, len(queries.training), name, len(gradients.training),
        )  # fmt: skip
        return cls(queries, gradients, config)

    def shard(self, number: int, count: int) -> Shards:
        """The examples of site ``number`` of ``count``.

        ``split-bp-zo-data`` gives a site's even examples to the gradients and its odd ones to the
        queries, unless it has only one, or two data sets. ``bp-max-samples`` then thins those of
        the gradients.

        Raises:
            ConfigError: there is no such shard.
            DataError: the site has too few examples to hold any out.
        """
        queries, gradients = self.queries.shard(number, count), self.gradients.shard(number, count)
        queries, held_out = self._hold_out(queries)
        if self.gradients is self.queries:
            gradients = queries
            if self.config.bp.split_data and len(queries) > 1:
                rows = np.arange(len(queries))
                queries, gradients = queries.take(rows[1::2]), gradients.take(rows[::2])
        most = self.config.bp.max_samples
        if 0 < most < len(gradients):
            gradients = gradients.take(space_fairly(gradients.labels, len(gradients), most))
        return Shards(queries, gradients, held_out)

    def _hold_out(self, queries: Examples) -> tuple[Examples, Examples | None]:
        """Split a site's examples into those for queries and those for its evaluation."""
        fraction, most = self.config.evaluation.site_fraction, self.config.evaluation.blocks
        if not fraction:
            return queries, None
        training, held_out = hold_out(queries, fraction, most)
        if not len(held_out):
            raise DataError(
                f"site-eval-fraction = {fraction} keeps none of a site's {len(queries)} examples"
            )
        return training, held_out
