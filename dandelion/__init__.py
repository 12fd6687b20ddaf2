"""Federated zeroth-order training of language models, in which sites send scalars, not models.

This package is the only documented import. ``server``, ``client`` and ``shared`` are internal.
"""


def __getattr__(name: str) -> str:
    """Return ``__version__``: a source that is on the path and not installed has none."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("dandelion")
