"""Federated zeroth-order training of language models, in which sites send scalars, not models.

This package is the only documented import. ``server``, ``client`` and ``shared`` are internal.
"""

from importlib.metadata import version

__version__ = version("dandelion")
