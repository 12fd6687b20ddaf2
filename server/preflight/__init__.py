"""Settings are tried out before the first round."""
