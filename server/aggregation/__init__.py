"""The sites' numbers become one entry."""
