"""What the server chooses by its own examples before a run starts becomes settings of the run.

So every replica has it, and the digest of the untrained model covers it.
"""

import logging
from typing import Any

import torch

from shared.config.schema import Config
from shared.config.scope_names import mask_of
from shared.features.readout import scaling_of
from shared.features.scaling import AUTO, NONE, Scaling, components_of, is_computed
from shared.masks.mask import AUTO as UNCHOSEN
from shared.masks.mask import Mask, check_size
from shared.masks.masked_module import shapes_of
from shared.training.corpus import Corpus, load_evaluation
from shared.training.oracle import EVALUATION_BATCH, Oracle
from shared.training.start import start_folder

LOG = logging.getLogger("dandelion")


def resolve_choices(config: Config) -> Config:
    """The configuration with numbers for ``feature-scaling`` and ``mask`` where these are to be.

    Whoever starts a run calls it once, before the settings go to any site. The inputs are the
    examples that the server evaluates on.

    Raises:
        ConfigError, DataError: model or data cannot be had, or they do not fit the scope.
    """
    if config.run.resume:
        return config
    if config.model.is_masked and config.model.mask == UNCHOSEN:
        return config.replace(mask=choose_mask(config))
    return resolve_feature_scaling(config)


def resolve_feature_scaling(config: Config) -> Config:
    """The configuration with numbers in the place of ``feature-scaling = auto`` or ``whiten:K``.

    The classes of the texts are not read. A run that starts from another one's readout goes on
    with its scaling.

    Raises:
        ConfigError, DataError: model or data cannot be had, or they do not fit the scope.
    """
    if not config.model.is_linear or not is_computed(config.model.feature_scaling):
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


def choose_mask(config: Config) -> str:
    """The text of a mask: a scope's addresses with the largest squared gradients.

    A gradient is that of the loss of EVALUATION_BATCH examples; its squares are added up over all
    examples that the server evaluates on. It is backpropagated here, and at no site.

    Raises:
        ConfigError, DataError: model or data cannot be had, or they do not fit the scope.
    """
    share, scope = mask_of(config.model.scope)
    oracle = Oracle.of(config.replace(scope=scope))
    check_size(share, oracle.replica.model.layout.parameters)
    rows = load_evaluation(Corpus.of(config, oracle.language_model), oracle.language_model)
    layout, squares = oracle.replica.model.layout, torch.zeros(0)
    for batch in torch.split(rows, EVALUATION_BATCH):
        squared = oracle.gradient(batch)[1].cpu().square()
        squares = squared if not len(squares) else squares.add_(squared)
    mask = Mask.of_largest(layout.views(squares), share)
    LOG.info(
        "%d of %d numbers are trained, by squared gradients of %d examples of the server",
        mask.size, layout.parameters, len(rows),
    )  # fmt: skip
    return mask.encode(shapes_of(oracle.language_model.module))
