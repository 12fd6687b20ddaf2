"""Sites of one process measure along the same directions in one forward pass per perturbation."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.site.site import LocalSite, losses_around_step
from client.site.zeroth_order import Queries
from shared.estimation.forward_differences import numbers_of
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
    losses = np.empty((len(sites), sites[0].config.zo.queries, 2))
    same = [site.batch(0) for site in sites]
    with oracle.frozen.reuse():
        for k, key in enumerate(sites[0].keys(0)):
            fresh = sites[0].config.zo.query_data == "fresh" and k > 0
            blocks = [site.batch(k) for site in sites] if fresh else same
            for sign, scale in enumerate((sites[0].config.zo.eps, -sites[0].config.zo.eps)):
                with oracle.perturber.at(key, scale):
                    losses[:, k, sign] = mean_losses(oracle, blocks)
    return [((own[:, 0] - own[:, 1]).astype(np.float32), float(own.mean())) for own in losses]


def _measure_forward(oracle: Oracle, sites: Sequence[Queries]) -> list[SiteNumbers]:
    """Forward differences (q,) of each site, and its baseline."""
    blocks, keys = [site.batch(0) for site in sites], sites[0].keys(0)
    losses = np.empty((len(sites), len(keys)))
    with oracle.frozen.reuse():
        baselines = mean_losses(oracle, blocks)
        for k, key in enumerate(keys):
            with oracle.perturber.at(key, sites[0].config.zo.eps):
                losses[:, k] = mean_losses(oracle, blocks)
    return [
        (numbers_of(own, float(base)), float(base))
        for own, base in zip(losses, baselines, strict=True)
    ]


def mean_losses(oracle: Oracle, blocks: Sequence[Tensor]) -> NDArray[np.float64]:
    """Mean loss of each site's blocks (S,), of all sites' blocks, each (B, T)."""
    rows = torch.cat(list(blocks))
    parts = torch.split(rows, max(1, PASS_TOKENS // rows.shape[1]))
    each = torch.cat([oracle.losses(part) for part in parts])
    return np.array([float(own.mean()) for own in torch.split(each, [len(b) for b in blocks])])
