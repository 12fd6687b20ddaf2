"""Sealed sums at the server: cohorts, and numbers from the sums of a committee."""
