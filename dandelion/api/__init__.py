"""What ``import dandelion`` offers; the commands call the same functions."""
