"""Federated zeroth-order training of language models, in which sites send scalars, not models.

This package is the only documented import. ``server``, ``client`` and ``shared`` are internal.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from client.handlers.handlers import zeroth_order_handler as zeroth_order_handler
    from client.handlers.handlers import zeroth_order_mod as zeroth_order_mod
    from server.strategies.rebuild import rebuild_from_ledger as rebuild_from_ledger
    from server.strategies.zeroth_order import ZerothOrder as ZerothOrder

_PUBLIC = {  # name: the module that defines it, imported when it is first used
    "ZerothOrder": "server.strategies.zeroth_order",
    "rebuild_from_ledger": "server.strategies.rebuild",
    "zeroth_order_mod": "client.handlers.handlers",
    "zeroth_order_handler": "client.handlers.handlers",
}
__all__ = sorted(_PUBLIC)  # noqa: PLE0605  (a list)


def __getattr__(name: str) -> Any:  # noqa: ANN401  (whatever the table names)
    """Return a public name, or ``__version__``: a source that is not installed has none."""
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(_PUBLIC[name]), name)
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("dandelion")


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
