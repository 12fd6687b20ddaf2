"""Data sets that are registered under a name: one module each, or one for several small ones."""
