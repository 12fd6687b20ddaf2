"""How likely a causal model finds continuations of a text."""
