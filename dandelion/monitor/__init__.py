"""Ways to watch a run: progress in a terminal, status of a folder, TensorBoard."""
