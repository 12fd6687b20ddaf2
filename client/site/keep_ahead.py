"""What is kept of a site's examples, computed for all of them before the first batch needs it.

A forward pass on a CPU holds texts of one length (``shared/features/passes.py``). A drawn batch has
few of each length, all of a site's examples have many: so they take less time together than batch
by batch. That pays only if the run's batches will come to most of them.
"""

from collections.abc import Iterator

import numpy as np
import torch

from shared.config.schema import Config
from shared.data.examples import Examples
from shared.modes.mode import Plan, plan_of
from shared.training.oracle import Oracle


def keep_ahead(oracle: Oracle, examples: Examples, draws: Iterator[int]) -> None:
    """Compute what is kept of examples, if a run's batches draw as many as there are.

    Args:
        oracle: keeps features, or the activations at the cut; it may have nothing to keep.
        examples: those of the queries, or those of the gradients.
        draws: how many of them each round that is left draws; 0 stands for all of them.
    """
    drawn, count = 0, len(examples)
    for size in draws:
        drawn += size or count
        if drawn >= count:
            oracle.keep(torch.from_numpy(examples.batch(np.arange(count))))
            return


def query_draws(config: Config, first: int, can_backpropagate: bool) -> Iterator[int]:
    """Examples of the queries of each round from ``first`` on in which this site measures."""
    c = config
    steps = c.training.local_steps * (1 if c.zo.query_data == "same" else c.zo.queries)
    for plan in _plans(c, first, can_backpropagate):
        if plan.measure:
            yield c.zo.batch_size * steps


def gradient_draws(config: Config, first: int, can_backpropagate: bool) -> Iterator[int]:
    """Examples of the backward passes of each round from ``first`` on that has them."""
    for plan in _plans(config, first, can_backpropagate):
        if plan.dense:
            yield config.bp.batch_size * (config.training.local_steps if plan.train else 1)


def _plans(config: Config, first: int, can_backpropagate: bool) -> Iterator[Plan]:
    """What the rounds that are left ask of a site: of a drawn cohort, as many as it is in."""
    sites, cohort = config.federation.num_clients, config.federation.clients_per_round
    every = max(1, sites // cohort) if cohort else 1
    for round_ in range(first, config.training.rounds + 1, every):
        yield plan_of(config, round_, can_backpropagate)
