"""Random numbers that are named, never carried: a counter-based generator and its streams."""
