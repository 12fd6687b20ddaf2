"""Sites of one process measure along the same directions in one forward pass per perturbation."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.site.site import LocalSite, losses_around_step
from client.site.zeroth_order import Queries
from shared.estimation.forward_differences import numbers_of, one_side
from shared.estimation.two_point import Point, both_sides, evaluate_at
from shared.modes.estimators import FORWARD, estimator_of
from shared.protocol.messages import Measured, Request
from shared.training.oracle import Oracle

SiteNumbers = tuple[NDArray[np.float32], float]  # (q,) numbers, and the loss that is reported
PASS_TOKENS = 1 << 13  # of one forward pass, so that its memory does not grow with the sites


def measure_merged(oracle: Oracle, sites: Sequence[LocalSite], request: Request) -> list[Measured]:
    """Measure a round for each site, from one pass over all their batches per perturbation.

    All sites share seed schedule and settings. Their losses are summed in another order than by
    each site alone: they are equal within 1e-6, not to the bit.
    """
    started, config = time.perf_counter(), sites[0].config
    queries = [Queries(site.id, site.examples, config, request.round) for site in sites]
    measure = _measure_forward if estimator_of(config) == FORWARD else _measure_both
    measured = measure(oracle, queries)
    for each, (_, loss) in zip(queries, measured, strict=True):
        each.losses.append(loss)
    losses = [losses_around_step(each, oracle, request) for each in queries]
    seconds = (time.perf_counter() - started) / len(sites)
    return [
        Measured(
            round=request.round,
            differences=numbers,
            examples=site.count,
            loss=float(np.float32(loss)) if site.config.privacy.sends_loss else None,
            seconds=seconds,
            digest=oracle.replica.digest(),
            outcome=site.evaluate(oracle) if request.evaluate else None,
            before=compared[0],
            after=compared[1],
        )
        for site, (numbers, loss), compared in zip(sites, measured, losses, strict=True)
    ]


def _measure_both(oracle: Oracle, sites: Sequence[Queries]) -> list[SiteNumbers]:
    """Two-point differences (q,) of each site, and the mean of its losses."""
    points = both_sides(sites[0].keys(0), sites[0].config.zo.eps)
    losses = _losses_at(oracle, sites, points).reshape(len(sites), -1, 2)
    return [((own[:, 0] - own[:, 1]).astype(np.float32), float(own.mean())) for own in losses]


def _measure_forward(oracle: Oracle, sites: Sequence[Queries]) -> list[SiteNumbers]:
    """Forward differences (q,) of each site, and its baseline."""
    points = one_side(sites[0].keys(0), sites[0].config.zo.eps)
    losses = _losses_at(oracle, sites, points)
    return [(numbers_of(own[1:], float(own[0])), float(own[0])) for own in losses]


def _losses_at(
    oracle: Oracle, sites: Sequence[Queries], points: Sequence[Point]
) -> NDArray[np.float64]:
    """Losses (S, P) of each site's batches at the points."""
    same = [site.batch(0) for site in sites]
    is_fresh = sites[0].config.zo.query_data == "fresh"

    def blocks(query: int) -> list[Tensor]:
        return [site.batch(query) for site in sites] if is_fresh and query else same

    def measure(own: Oracle, numbers: range) -> list[NDArray[np.float64]]:
        def losses(query: int) -> NDArray[np.float64]:
            return mean_losses(own, blocks(query))

        return [evaluate_at(points[n], losses, own.perturber) for n in numbers]

    queries = range(points[-1].query + 1 if is_fresh else 1)
    passes = (part for query in queries for part in _passes(blocks(query)))
    return np.stack(oracle.share_out(len(points), measure, lambda: passes), axis=1)


def _passes(blocks: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The rows of each forward pass, of all sites' blocks, each (B, T)."""
    rows = torch.cat(list(blocks))
    return torch.split(rows, max(1, PASS_TOKENS // rows.shape[1]))


def mean_losses(oracle: Oracle, blocks: Sequence[Tensor]) -> NDArray[np.float64]:
    """Mean loss of each site's blocks (S,), of all sites' blocks, each (B, T)."""
    each = torch.cat([oracle.losses(part) for part in _passes(blocks)])
    return np.array([float(own.mean()) for own in torch.split(each, [len(b) for b in blocks])])
