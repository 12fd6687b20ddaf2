"""The ``dandelion`` command: one module per sub-command."""
