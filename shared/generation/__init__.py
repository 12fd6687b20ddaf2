"""Texts that a model writes, and how far they are like the texts that were expected."""
