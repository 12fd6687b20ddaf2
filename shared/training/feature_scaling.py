"""Statistics of a run's features are computed before it starts and become one of its settings."""

import logging
from typing import Any

from shared.config.schema import Config
from shared.features.readout import scaling_of
from shared.features.scaling import AUTO, NONE, Scaling, components_of, is_computed
from shared.training.corpus import Corpus, load_evaluation
from shared.training.oracle import Oracle
from shared.training.start import start_folder

LOG = logging.getLogger("dandelion")


def resolve_feature_scaling(config: Config) -> Config:
    """The configuration with numbers in the place of ``feature-scaling = auto`` or ``whiten:K``.

    Whoever starts a run calls it once, before the settings go to any site. The inputs are the
    texts that the server evaluates on; their classes are not read. A run that starts from another
    one's readout goes on with its scaling.

    Raises:
        ConfigError, DataError: model or data cannot be had, or they do not fit the scope.
    """
    if not config.model.is_linear or config.run.resume:
        return config
    if not is_computed(config.model.feature_scaling):
        return config
    start = start_folder(config)
    text = scaling_of(start) if start is not None else NONE
    return config.replace(feature_scaling=_compute(config) if text == NONE else text)


def _compute(config: Config) -> str:
    oracle = Oracle.of(config.replace(feature_scaling=NONE))
    model = oracle.language_model
    rows = load_evaluation(Corpus.of(config, model), model)
    LOG.info("features are standardised by %d held-out texts of the server", len(rows))
    task: Any = oracle.task
    features, text = task.raw_features(model.module, rows), config.model.feature_scaling
    if text == AUTO:
        return Scaling.of(features).encode()
    return Scaling.whiten(features, components_of(text)).encode()
