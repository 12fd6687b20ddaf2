"""Tasks, one file each: examples, losses and scores of what a model is trained for."""
