"""Strategies for somebody else's ServerApp."""
