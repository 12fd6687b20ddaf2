"""Fast forms of the families, each imported when a tensor first needs it, never to list names."""
