"""A counter-based random generator, and the table of what its counters are used for."""
