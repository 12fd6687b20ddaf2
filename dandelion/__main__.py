"""``python -m dandelion``: the same as the ``dandelion`` command."""

from dandelion.cli.app import entry

if __name__ == "__main__":
    entry()
