"""Objectives: what a site measures at θ ± εz, the loss or any other number per example."""
