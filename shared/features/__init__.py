"""Features: what the frozen part of a model makes of an example, computed once in a run."""
