"""One command that tries the system on a card: bits, speed, large models and learning."""
