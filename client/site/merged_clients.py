"""Sites of one process that measure along the same keys, in one forward pass per perturbation."""

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

TOKENS = 1 << 13  # of one forward pass: what it computes stays small, however many sites there are


def measure_merged(oracle: Oracle, sites: Sequence[LocalSite], request: Request) -> list[Measured]:
    """Each site's measurement of a round, from one pass over all their batches per perturbation.

    A loss is the same sum in another order: equal within 1e-6, not to the bit.
    """
    started, config = time.perf_counter(), sites[0].config
    asked = [Queries(site.id, site.examples, config, request.round) for site in sites]
    same = torch.stack([queries.batch(0) for queries in asked])  # (S, B, T)
    found = np.empty((len(sites), config.queries, 2))
    with oracle.frozen.reuse():
        for k, key in enumerate(asked[0].keys(0)):
            fresh = config.query_data == "fresh" and k > 0
            blocks = torch.stack([queries.batch(k) for queries in asked]) if fresh else same
            for sign, scale in enumerate((config.eps, -config.eps)):
                with oracle.perturber.at(key, scale):
                    found[:, k, sign] = _losses(oracle, blocks)
    seconds = (time.perf_counter() - started) / len(sites)
    return [
        Measured(
            round=request.round,
            differences=(losses[:, 0] - losses[:, 1]).astype(np.float32),
            examples=site.count,
            loss=float(np.float32(losses.mean())),
            seconds=seconds,
            digest=oracle.replica.digest(),
            outcome=site.evaluated(oracle) if request.evaluate else None,
        )
        for site, losses in zip(sites, found, strict=True)
    ]


def _losses(oracle: Oracle, blocks: Tensor) -> NDArray[np.float64]:
    """Mean loss of each site's blocks (S,), of all sites' blocks (S, B, T)."""
    sites, batch, length = blocks.shape
    parts = torch.split(blocks.view(-1, length), max(1, TOKENS // length))
    each = torch.cat([oracle.losses(part) for part in parts])
    means: NDArray[np.float64] = each.view(sites, batch).mean(1).numpy()
    return means
