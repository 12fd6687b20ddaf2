"""Differential privacy of numbers: clip, grid, exact noise, and what rounds cost."""
