"""An aggregation rule makes one vector of the vectors of many sites.

A rule is a function ``(vectors, weights) -> vector``: ``vectors`` (n, k) float64, one row a site;
``weights`` (n,) float64, each site's number of examples; the result (k,) float64. It is pure, it
returns the vector of sites that are all equal, and it does not depend on the order of the rows.

A new rule is one module of this package, or of a plug-in (entry points ``dandelion.aggregation``)::

    @AGGREGATION.register("coordinate-maximum")
    def maximum(vectors, weights):
        return vectors.max(axis=0)

A rule with options is a frozen dataclass whose fields are made by ``shared.base.options.option``
and whose ``__call__`` has that signature. If it has a plain field ``min_replies``, it gets the
run's setting of that name, or the number of parts whose sealed sums it compares. A property
``fewest_vectors`` says how many vectors it needs (1 if it has none), an attribute
``keeps_whole_vectors`` that it chooses among sites, not coordinates.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from shared.base.options import arguments_of
from shared.base.registry import Registry
from shared.config.schema import Config

Rule = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
RuleKind = Rule | Callable[..., Rule]  # a rule, or a dataclass that makes one from its options

AGGREGATION: Registry[RuleKind] = Registry("aggregation", "shared.aggregation")


def rule_of(config: Config) -> Rule:
    """Return the rule that ``aggregation`` names, with the options that the run gives it.

    Raises:
        UnknownNameError: no rule has this name.
    """
    kind = AGGREGATION[config.federation.aggregation]
    if not isinstance(kind, type):
        return cast(Rule, kind)
    arguments = dict(arguments_of(kind, config.options))
    if is_dataclass(kind) and "min_replies" in {field.name for field in fields(kind)}:
        parts = config.privacy.parts if config.privacy.is_sealed else 0
        arguments["min_replies"] = parts or config.federation.min_replies
    return cast(Rule, kind(**arguments))


def fewest_replies(config: Config) -> int:
    """How many replies the run's rule needs to tell liars from others; 1 if it needs no more."""
    return int(getattr(rule_of(config), "fewest_vectors", 1))


def keeps_whole_vectors(config: Config) -> bool:
    """Whether the run's rule chooses whole vectors, so that parts of a reply may not be parted."""
    return bool(getattr(rule_of(config), "keeps_whole_vectors", False))
