"""A name to implementation table that fills itself from the modules of one package and plug-ins."""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

from shared.base.errors import ConfigError, UnknownNameError
from shared.base.plug_ins import PREFIX, load_plug_ins

T = TypeVar("T")

_REGISTRIES: "dict[str, Registry[Any]]" = {}  # by kind, those that were declared


def registry_of(kind: str) -> "Registry[Any]":
    """The registry of a kind; the module that declares it has been imported."""
    return _REGISTRIES[kind]


class Registry(Generic[T]):
    """Looks names up among what the modules of ``package`` and installed plug-ins registered.

    All kinds of extension register alike: a module of the package, or one that an installed
    distribution names as an entry point of the group ``dandelion.<package's last part>``, calls
    ``REGISTRY.register("name")(implementation)`` when it is imported.

    The modules are imported at the first look-up, sub-packages never: kernels that need a device
    live in one of those, so that a host without the device can still list the names.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._known: dict[str, T] = {}
        self._discovered = False
        _REGISTRIES[kind] = self

    @property
    def group(self) -> str:
        """The group of entry points that plug-ins of this kind are installed under."""
        return PREFIX + self._package.rpartition(".")[2]

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its target under ``name``.

        Raises:
            ValueError: another target has the name.
        """

        def add(target: T) -> T:
            if name in self._known and self._known[name] is not target:
                raise ValueError(
                    f"{self.kind} {name!r} is registered twice: {_place(self._known[name])} has "
                    f"the name, {_place(target)} wants it; choose another"
                )
            self._known[name] = target
            return target

        return add

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._discover()
        return sorted(self._known)

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._known

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
        self._load_plug_ins()
        self._discovered = True

    def _load_plug_ins(self) -> None:
        """Import the plug-ins; one that fails leaves no names behind, so it fails every time."""
        known: dict[str, T] = {}
        try:
            for _ in load_plug_ins(self.group):
                known = dict(self._known)
        except ConfigError:
            self._known = known
            raise


def _place(target: object) -> str:
    """Where a target was written, as far as it says so."""
    name = getattr(target, "__qualname__", type(target).__name__)
    return f"{getattr(target, '__module__', type(target).__module__)}.{name}"
