"""Measurements of what the system claims, each against the peers' way in the same process."""
