"""Sites of one process measure along the same directions in one forward pass per perturbation."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.site.site import LocalSite
from client.site.zeroth_order import Queries
from shared.protocol.messages import Measured, Request
from shared.training.oracle import Oracle

PASS_TOKENS = 1 << 13  # of one forward pass, so that its memory does not grow with the sites


def measure_merged(oracle: Oracle, sites: Sequence[LocalSite], request: Request) -> list[Measured]:
    """Measure a round for each site, from one pass over all their batches per perturbation.

    All sites share seed schedule and settings. Their losses are summed in another order than by
    each site alone: they are equal within 1e-6, not to the bit.
    """
    started, config = time.perf_counter(), sites[0].config
    measured = [Queries(site.id, site.examples, config, request.round) for site in sites]
    losses = _measure_losses(oracle, measured)
    seconds = (time.perf_counter() - started) / len(sites)
    return [
        Measured(
            round=request.round,
            differences=(own[:, 0] - own[:, 1]).astype(np.float32),
            examples=site.count,
            loss=float(np.float32(own.mean())),
            seconds=seconds,
            digest=oracle.replica.digest(),
            outcome=site.evaluate(oracle) if request.evaluate else None,
        )
        for site, own in zip(sites, losses, strict=True)
    ]


def _measure_losses(oracle: Oracle, sites: Sequence[Queries]) -> NDArray[np.float64]:
    """Losses (S, q, 2) at θ + εz and θ − εz, for the q directions that all sites share."""
    config = sites[0].config
    losses = np.empty((len(sites), config.zo.queries, 2))
    same = torch.stack([site.batch(0) for site in sites])  # (S, B, T)
    with oracle.frozen.reuse():
        for k, key in enumerate(sites[0].keys(0)):
            fresh = config.zo.query_data == "fresh" and k > 0
            blocks = torch.stack([site.batch(k) for site in sites]) if fresh else same
            for sign, scale in enumerate((config.zo.eps, -config.zo.eps)):
                with oracle.perturber.at(key, scale):
                    losses[:, k, sign] = _mean_losses(oracle, blocks)
    return losses


def _mean_losses(oracle: Oracle, blocks: Tensor) -> NDArray[np.float64]:
    """Mean loss of each site's blocks (S,), of all sites' blocks (S, B, T)."""
    sites, batch, length = blocks.shape
    parts = torch.split(blocks.view(-1, length), max(1, PASS_TOKENS // length))
    each = torch.cat([oracle.losses(part) for part in parts])
    means: NDArray[np.float64] = each.view(sites, batch).mean(1).numpy()
    return means
