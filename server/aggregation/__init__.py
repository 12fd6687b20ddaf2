"""Aggregation makes one entry of the numbers and gradients of many sites."""
