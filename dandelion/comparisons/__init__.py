"""Comparison of methods from the same start: the cost of each for the loss that it reaches."""
