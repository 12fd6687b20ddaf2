"""Federated zeroth-order training of language models, in which sites send scalars, not models.

This package is the only documented import. ``server``, ``client`` and ``shared`` are internal.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.problem.problem import Problem as Problem
    from shared.problem.problem import Site as Site

_PUBLIC = {  # name -> module; imported when first used, since torch takes a second
    "Problem": "shared.problem.problem",
    "Site": "shared.problem.problem",
}
__all__ = ["Problem", "Site", "__version__"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  (whatever the name stands for)
    """Import what a public name stands for; ``__version__`` is that of the installed package."""
    if name == "__version__":
        from importlib.metadata import version

        return version("dandelion")
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
