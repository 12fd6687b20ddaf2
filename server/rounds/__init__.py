"""A round has requests, replies, one entry, and what follows its commit."""
