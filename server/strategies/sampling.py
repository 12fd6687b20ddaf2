"""Which nodes take part in a round of somebody else's app: drawn by the run's seed."""

import logging
import time
from dataclasses import dataclass

import numpy as np
from flwr.serverapp import Grid

from shared.base.errors import StalledError
from shared.randomness.philox import words
from shared.randomness.streams import cohort_key

LOG = logging.getLogger("dandelion")
LOOK_S = 1.0  # between two looks at who is connected
TRAIN, EVALUATE = 0, 1  # draws of a round


@dataclass(frozen=True)
class Sampling:
    """How many nodes take part, as Flower's FedAvg counts them."""

    fraction: float  # of the connected nodes
    least: int  # nodes, whatever the fraction gives
    available: int  # nodes that must be connected before any is drawn

    def draw(self, grid: Grid, seed: int, round_: int, draw: int, wait_s: float) -> list[int]:
        """Wait for enough nodes, then draw among those that are connected; sorted node ids.

        The draw is a pure function of seed, round and the set of node ids. Flower makes these ids
        anew for each simulation, so only a share of 1 draws the same clients in every run.

        Raises:
            StalledError: too few nodes were connected within ``wait_s`` seconds.
        """
        if self.fraction == 0:
            return []
        nodes = self._wait(grid, wait_s)
        size = min(len(nodes), max(int(len(nodes) * self.fraction), self.least))
        order = words(cohort_key(seed, round_, draw), range(len(nodes)))[:, 0]
        chosen = np.argsort(order, kind="stable")[:size]
        return sorted(nodes[each] for each in chosen)

    def _wait(self, grid: Grid, wait_s: float) -> list[int]:
        needed, start = max(self.available, self.least, 1), time.monotonic()
        announced = -1
        while len(nodes := sorted(grid.get_node_ids())) < needed:
            if time.monotonic() - start >= wait_s:
                raise StalledError(
                    f"{needed} nodes needed, {len(nodes)} are connected after {wait_s:g} s: start "
                    "more clients, or lower min_available_nodes and min_train_nodes"
                )
            if len(nodes) != announced:
                LOG.info("waiting for nodes: %d of %d are connected", len(nodes), needed)
                announced = len(nodes)
            time.sleep(min(LOOK_S, max(wait_s / 10, 0.01)))
        return nodes
