"""The messages between server and sites, and the layout of their bytes."""
