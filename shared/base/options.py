"""A setting is declared once, beside its field: default, meaning, unit, range or choices.

Sections of the configuration and components (optimizers, families of directions, codecs,
aggregation rules) are frozen dataclasses whose fields are made by ``option``. Validation, help and
the pages of the documentation are derived from these declarations.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

from shared.base.errors import ConfigError

Value = str | int | float | bool
KEY = "option"  # of a field's metadata


@dataclass(frozen=True)
class Option:
    """What is known of one setting; ``check`` tells whether a value may be one of it."""

    key: str  # hyphenated
    default: Value
    meaning: str
    unit: str = ""
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """The values that it may have, in words; empty: any of its type."""
        if self.choices:
            return ", ".join(self.choices)
        parts = [
            *([f"above {self.above:g}"] if self.above is not None else []),
            *([f"from {self.at_least:g}"] if self.at_least is not None else []),
            *([f"below {self.below:g}"] if self.below is not None else []),
            *([f"up to {self.at_most:g}"] if self.at_most is not None else []),
        ]
        return " ".join(parts)

    def check(self, value: object) -> Value:
        """Return ``value`` as this setting's type; an integer may stand for a float.

        Raises:
            ConfigError: another type, or out of range; says what was expected and what came.
        """
        kind = type(self.default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ConfigError(f"{self.key}: {kind.__name__} expected, got {value!r}")
        if self.choices and value not in self.choices:
            raise ConfigError(f"{self.key}: one of {self.range} expected, got {value!r}")
        if isinstance(value, int | float) and not self._within(float(value)):
            raise ConfigError(f"{self.key}: a number {self.range} expected, got {value!r}")
        checked: Value = value
        return checked

    def _within(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )


def option(  # noqa: PLR0913  (all but two by name)
    default: Value,
    meaning: str,
    *,
    unit: str = "",
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: Sequence[str] = (),
) -> Any:  # noqa: ANN401  (the field's own type, as with dataclasses.field)
    """A dataclass field that declares a setting; its key is the field's name with hyphens."""
    known = {"above": above, "at_least": at_least, "below": below, "at_most": at_most}
    facts = {"meaning": meaning, "unit": unit, "choices": tuple(choices), **known}
    return field(default=default, metadata={KEY: facts})


def options_of(target: object) -> dict[str, Option]:
    """The settings that a section or a component declares, by field name; none of a function."""
    if not (isinstance(target, type) and is_dataclass(target)):
        return {}
    return {
        each.name: Option(each.name.replace("_", "-"), each.default, **each.metadata[KEY])
        for each in fields(target)
        if KEY in each.metadata and each.default is not MISSING
    }


def check_options(target: object, given: Mapping[str, object], what: str) -> dict[str, Value]:
    """Check options, by hyphenated key, against what ``target`` declares; returned by field name.

    Raises:
        ConfigError: it has no such option (names those it has), or a value is not one of it.
    """
    known = {each.key: (name, each) for name, each in options_of(target).items()}
    if unknown := sorted(given.keys() - known.keys()):
        has = ", ".join(sorted(known)) or "none"
        raise ConfigError(f"{unknown[0]} has no effect with {what}; its options: {has}")
    return {known[key][0]: known[key][1].check(value) for key, value in given.items()}
