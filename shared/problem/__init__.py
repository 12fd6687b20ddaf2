"""One's own problem: model, examples and loss from a module outside this repository."""
