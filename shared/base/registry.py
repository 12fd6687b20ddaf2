"""A name to implementation table that fills itself from the modules of one package."""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Generic, TypeVar

from shared.base.errors import UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Looks names up among what the modules of ``package`` registered.

    The modules are imported at the first look-up, sub-packages never: kernels that need a device
    live in one of those, so that a host without the device can still list the names.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._known: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its target under ``name``."""

        def add(target: T) -> T:
            if name in self._known and self._known[name] is not target:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._known[name] = target
            return target

        return add

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._discover()
        return sorted(self._known)

    def __getitem__(self, name: str) -> T:
        self._discover()
        if name not in self._known:
            raise UnknownNameError(self.kind, name, self._known)
        return self._known[name]

    def _discover(self) -> None:
        if self._discovered:
            return
        package = import_module(self._package)
        for module in iter_modules(package.__path__):
            if not module.ispkg:
                import_module(f"{self._package}.{module.name}")
        self._discovered = True
