"""A setting is declared once, beside its field: default, meaning, unit, range or choices.

Sections of the configuration and components (optimizers, families of directions, codecs,
aggregation rules, modes) are dataclasses whose fields are made by ``option``. Validation, help, the
defaults in ``pyproject.toml`` and the settings page of the documentation follow from these.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any
from unicodedata import category

from shared.base.errors import ConfigError, UnknownNameError

Value = str | int | float | bool
KEY = "option"  # of a field's metadata
NEAREST, CUTOFF = 3, 0.5  # names that an error suggests, and how alike they must be
INTEGER_LIMIT = 1 << 30  # integers of a setting lie below, unless it says otherwise
NOT_TEXT = ("Cc", "Cs")  # Unicode categories: control characters, lone surrogates


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
    resumable: bool = False  # a resumed run may change it: no number of the run depends on it
    used_by: str = ""  # the modes, or the component, for which it matters; empty: always
    path: bool = False  # whether its values may name folders or files

    @property
    def kind(self) -> type:
        """The type of its values."""
        return type(self.default)

    @property
    def range(self) -> str:
        """The values that it may have, in words; empty: any of its type."""
        if self.choices:
            return ", ".join(self.choices)
        low = (
            f"above {self.above:g}" if self.above is not None
            else f"from {self.at_least:g}" if self.at_least is not None else ""
        )  # fmt: skip
        high = (
            f"below {_limit(self.below)}" if self.below is not None
            else f"at most {self.at_most:g}" if self.at_most is not None else ""
        )  # fmt: skip
        if low.startswith("from") and high:
            return f"{low} to {high.removeprefix('at most ')}"
        return " and ".join(filter(None, (low, high)))

    def check(self, value: Any) -> Value:  # noqa: ANN401  (whatever came from outside)
        """Return ``value`` as this setting's type; an integer may stand for a float.

        Raises:
            ConfigError: another type, or out of range; says what was expected and what came.
        """
        if isinstance(value, int) and value.bit_length() > 64:
            raise self._refusal("a number of 64 bits", f"{value.bit_length()} bits")
        if self.kind is float and type(value) is int:
            value = float(value)
        fits = type(value) is self.kind
        if not fits:
            raise self._refusal(self.kind.__name__, f"{type(value).__name__} {value!r}")
        if self.kind is str:
            self._check_text(value)
        elif self.kind is not bool:
            self._check_number(value)
        checked: Value = value
        return checked

    def parse(self, text: str) -> Value:
        """Read a value of this setting's type from the command line; ranges are checked later.

        Raises:
            ConfigError: the text is not a value of the type.
        """
        if self.kind is bool:
            if text.lower() not in ("true", "false"):
                raise self._refusal("true or false", repr(text))
            return text.lower() == "true"
        try:
            value: Value = self.kind(text)
        except ValueError:
            raise self._refusal(self.kind.__name__, repr(text)) from None
        return value

    def _refusal(self, expected: str, got: str) -> ConfigError:
        return ConfigError(f"{self.key}: {expected} expected, got {got}")

    def _check_text(self, value: str) -> None:
        if any(category(character) in NOT_TEXT for character in value):
            raise self._refusal("text without control characters", repr(value))
        if self.choices and value not in self.choices:
            raise UnknownNameError(self.key, value, self.choices)

    def _check_number(self, number: Any) -> None:  # noqa: ANN401  (exact: an int stays one)
        if not math.isfinite(number):
            raise self._refusal("a finite number", repr(number))
        within = (
            (self.above is None or number > self.above)
            and (self.at_least is None or number >= self.at_least)
            and (self.below is None or number < self.below)
            and (self.at_most is None or number <= self.at_most)
        )
        if not within:
            noun = "an integer" if self.kind is int else "a number"
            raise self._refusal(f"{noun} {self.range}", repr(number))


def option(  # noqa: PLR0913  (all but two by name)
    default: Value,
    meaning: str,
    *,
    key: str = "",
    unit: str = "",
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: Sequence[str] = (),
    resumable: bool = False,
    used_by: str = "",
    path: bool = False,
) -> Any:  # noqa: ANN401  (the field's own type, as with dataclasses.field)
    """A dataclass field that declares a setting.

    Args:
        default: its value unless the user gives one; its type is the setting's.
        meaning: one line for help and documentation.
        key: the unique name on the command line; empty: the field's name with hyphens.
        unit: of a number, as "s" or "rounds".
        above: least value, itself excluded.
        at_least: least value; an integer's is 0 unless said.
        below: largest value, itself excluded; an integer's is 2**30 unless said.
        at_most: largest value.
        choices: the texts that it may be.
        resumable: whether a resumed run may change it.
        used_by: the modes or the component for which it matters.
        path: whether its values may name folders or files of a disk.
    """
    if type(default) is int:
        at_least = 0 if at_least is None and above is None else at_least
        below = INTEGER_LIMIT if below is None and at_most is None else below
    facts = {
        "key": key, "meaning": meaning, "unit": unit, "above": above, "at_least": at_least,
        "below": below, "at_most": at_most, "choices": tuple(choices), "resumable": resumable,
        "used_by": used_by, "path": path,
    }  # fmt: skip
    return field(default=default, metadata={KEY: facts})


def options_of(target: object) -> dict[str, Option]:
    """The settings that a section or a component declares, by field name; none of a function.

    A component that is no dataclass itself may have one as its attribute ``options``.
    """
    target = getattr(target, "options", target)
    return dict(_read_options(target)) if isinstance(target, type) and is_dataclass(target) else {}


@lru_cache(maxsize=256)  # every message to a site has its settings checked
def _read_options(target: type[Any]) -> dict[str, Option]:
    """The settings of a dataclass by field name, which do not change."""
    return {
        each.name: _option(each)
        for each in fields(target)
        if KEY in each.metadata and each.default is not MISSING
    }


def _option(declaration: Field[Any]) -> Option:
    facts = dict(declaration.metadata[KEY])
    facts["key"] = facts["key"] or hyphenate(declaration.name)
    default: Any = declaration.default
    return Option(default=default, **facts)


def arguments_of(target: object, given: Mapping[str, object]) -> dict[str, Value]:
    """Those of the given settings (by key) that ``target`` declares, as keyword arguments of it.

    Raises:
        ConfigError: a value is not one of its option.
    """
    known = options_of(target).items()
    return {name: each.check(given[each.key]) for name, each in known if each.key in given}


def hyphenate(name: str) -> str:
    """The spelling of a name as a key: hyphens for underscores."""
    return name.replace("_", "-")


def nearest_names(name: str, known: Sequence[str]) -> list[str]:
    """Up to three known names that look like ``name``, or whose initials it gives."""
    initials = sorted(k for k in known if "".join(word[:1] for word in k.split("-")) == name)
    alike = get_close_matches(name, known, NEAREST, CUTOFF)
    return list(dict.fromkeys([*initials, *alike]))[:NEAREST]


def _limit(value: float) -> str:
    exponent = math.frexp(value)[1] - 1
    return f"2**{exponent}" if exponent >= 16 and value == 2.0**exponent else f"{value:g}"
