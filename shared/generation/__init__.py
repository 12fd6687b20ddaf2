"""Conversations as tokens, the texts that a model writes, and how like they are to expected ones."""
