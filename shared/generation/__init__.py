"""Conversations as tokens, the texts that a model writes, and the scores of these."""
