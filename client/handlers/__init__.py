"""Handlers of messages for somebody else's ClientApp."""
