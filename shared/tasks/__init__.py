"""What a model is trained for: examples, losses and scores of a task."""
