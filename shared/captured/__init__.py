"""Passes that are captured as CUDA graphs, and what must hold of code in them."""
