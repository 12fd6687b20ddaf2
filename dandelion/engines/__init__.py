"""Where a run runs: in this process, or in Flower's simulation."""
