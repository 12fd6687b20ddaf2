"""Watching runs: progress in a terminal, status of a folder, TensorBoard."""
