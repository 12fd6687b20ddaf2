"""A run's model for others: a folder, adapters alone, a GGUF file, or a repository on the hub."""
