"""The grid of a sweep: axes of listed values, and cells that are all their combinations."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from dandelion.settings.presets import expand_preset
from shared.base.errors import ConfigError
from shared.base.options import Value
from shared.config.schema import ALIASES, Config, flat_key, unknown_setting
from shared.training.components import all_keys, parse
from shared.training.validate import configure

NAMING = ("run-name", "output-dir", "resume")  # what no cell may set
LONGEST_NAME = 120  # characters, of a cell's files


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    name: str  # of its run folder
    settings: Mapping[str, Value]  # what it varies

    def config(self, base: Mapping[str, Value]) -> Config:
        """The configuration of the cell's run: ``base``, then the cell's own settings.

        Raises:
            ConfigError: the combination of settings is invalid.
        """
        return configure(expand_preset({**base, **self.settings, "run-name": self.name}))


def axes_of(texts: Sequence[str]) -> dict[str, list[Value]]:
    """Read ``key=value,value,…``, one text for each axis.

    Raises:
        ConfigError: not of this form, an unknown key, or a repeated key or value.
    """
    axes: dict[str, list[Value]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = check_key(key.strip(), "--grid", text) if equals else ""
        parts = [part.strip() for part in values.split(",") if part.strip()]
        if not key or not parts:
            raise ConfigError(f"--grid key=value,value,… expected, got {text!r}")
        parsed = [parse(key, part) for part in parts]
        if key in axes or len(set(parsed)) < len(parsed):
            raise ConfigError(f"--grid {text!r}: each key and each value once expected")
        axes[key] = parsed
    return axes


def check_key(key: str, option: str, text: str) -> str:
    """Return the key if a sweep can vary it.

    Raises:
        ConfigError: there is no such setting, or it names the run.
    """
    if flat_key(key) in NAMING:
        raise ConfigError(f"{option} {text!r}: {key} names a run, and each cell has its own")
    if flat_key(key) not in ALIASES and flat_key(key) not in (keys := all_keys()):
        raise ConfigError(f"{option} {text!r}: {unknown_setting(key, keys)}")
    return flat_key(key)


def cells_of(axes: Mapping[str, Sequence[Value]]) -> list[Cell]:
    """All combinations of the axes' values; the last axis varies fastest.

    Cells whose names would be the same, cut short or in characters that files may have, get a mark
    of their own settings.
    """
    combinations = [
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    ]
    count = Counter(map(name_of, combinations))
    return [
        Cell(name if count[name := name_of(each)] == 1 else f"{name}-{_mark(each)}", each)
        for each in combinations
    ]


def name_of(settings: Mapping[str, Value]) -> str:
    """The name of a cell's files, built from its settings: ``mode=zo,queries=8``."""
    words = ",".join(f"{key}={_text(value)}" for key, value in settings.items()) or "all"
    safe = "".join(c if c.isalnum() or c in "=,.-_+" else "-" for c in words)
    return safe[:LONGEST_NAME]


def _mark(settings: Mapping[str, Value]) -> str:
    return sha256(repr(sorted(settings.items())).encode()).hexdigest()[:8]


def _text(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
