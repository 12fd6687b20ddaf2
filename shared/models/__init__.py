"""Models with their tokenizers: built from a table, loaded from a folder, a package or a hub."""
