"""Modes: which gradient a round uses, and what a site does for it."""
