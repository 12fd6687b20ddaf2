"""Benchmarks of the system's claims, each against the peers' way in the same process."""
