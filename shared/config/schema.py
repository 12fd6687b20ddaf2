"""One frozen, typed configuration in sections, checked when it is made.

A setting is known by its flat key (``eps``, ``bp-interval``), which is unique over the sections, on
the command line, in Flower's run config and in ledgers. ``zo.eps``, underscores for hyphens, and
the tables of a TOML file (``[zo] eps = 0.001``) mean the same. Whatever no section declares is kept
as an option of a component (an optimizer, a codec, …) until ``shared.training.validate`` asks the
components. This package knows none of them.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from shared.base.errors import ConfigError
from shared.base.options import Option, Value, hyphenate, nearest_names, options_of
from shared.config.answer_section import AnswerSettings
from shared.config.privacy_section import PrivacySettings
from shared.config.run_sections import FederationSettings, GuardSettings, RunSettings
from shared.config.sections import (
    BpSettings,
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    OptimizerSettings,
    Section,
    TrainingSettings,
    ZoSettings,
)
from shared.config.text_section import TextSettings

ALIASES: Mapping[str, tuple[str, ...]] = {  # former keys: each sets all of these
    "min-clients": ("min-replies", "min-sites"),
}
OPTIONS = "options"  # what is none of the sections
FORMER: Mapping[str, Value] = {  # what runs did before these settings were declared
    "estimator": "two-point",
    "kernels": "torch",
    "max-share": 1.0,
    "step": "plain",
    "step-version": 1,
}


@dataclass(frozen=True, init=False)
class Config:
    """What a run is: twelve sections, and the options of its components that are given."""

    training: TrainingSettings = field(default_factory=TrainingSettings)
    data: DataSettings = field(default_factory=DataSettings)
    text: TextSettings = field(default_factory=TextSettings)
    answer: AnswerSettings = field(default_factory=AnswerSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    zo: ZoSettings = field(default_factory=ZoSettings)
    bp: BpSettings = field(default_factory=BpSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    federation: FederationSettings = field(default_factory=FederationSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    run: RunSettings = field(default_factory=RunSettings)
    given: tuple[tuple[str, Value], ...] = ()  # options of components, by key

    def __init__(self, settings: Mapping[str, object] | None = None, /, **more: object) -> None:
        """Make a configuration of flat settings; what is not given has its default.

        Args:
            settings: by key in any of its spellings; values may be tables of a section.
            more: the same as keyword arguments: ``Config(queries=4, num_rounds=2)``.

        Raises:
            ConfigError: a value has the wrong type or is out of range, or a key is given twice.
        """
        values = {**flat_settings(settings or {}), **flat_settings(more)}
        for name, section in sections().items():
            keys = options_of(section)
            arguments = {k: values.pop(each.key) for k, each in keys.items() if each.key in values}
            object.__setattr__(self, name, section(**arguments))
        options = {key: _option_value(key, value) for key, value in values.items()}
        given = tuple(sorted((key, value) for key, value in options.items() if value != ""))
        object.__setattr__(self, "given", given)

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, object]) -> "Config":
        """The configuration that a mapping, such as Flower's run config, describes.

        Raises:
            ConfigError: as ``Config`` itself; names and combinations are ``validate``'s to check.
        """
        return cls(run_config)

    @property
    def options(self) -> dict[str, Value]:
        """The options of components that are given, by key; others have their own defaults."""
        return dict(self.given)

    def to_run_config(self) -> dict[str, Value]:
        """All settings by flat key, as Flower's run config takes them."""
        values = {
            each.key: getattr(getattr(self, where), name)
            for (where, name), each in _fields().items()
        }
        return {**values, **self.options}

    def paths(self) -> dict[str, str]:
        """The settings that are paths, or may be, by flat key; they may be empty."""
        return {
            each.key: str(getattr(getattr(self, where), name))
            for (where, name), each in _path_fields().items()
        }

    def replace(self, **changes: object) -> "Config":
        """The same with other values of some settings, by flat name.

        Raises:
            ConfigError: as ``Config`` itself.
        """
        return type(self)({**self.to_run_config(), **flat_settings(changes)})

    def differences(self, other: "Config") -> list[str]:
        """Settings whose change would make another run of it, with both values."""
        mine, theirs = self.to_run_config(), other.to_run_config()
        return [
            f"{key} = {mine.get(key, '')!r} (recorded: {theirs.get(key, '')!r})"
            for key in {**mine, **theirs}
            if key not in RESUMABLE and mine.get(key, "") != theirs.get(key, "")
        ]


def with_former_defaults(settings: Mapping[str, object]) -> dict[str, object]:
    """The settings of a recorded run by flat key; a former run's say what it did by itself.

    Whatever the defaults are now, a run that was started without these settings goes on as it was.
    """
    recorded = {**FORMER, **flat_settings(settings)}
    if recorded["estimator"] == "auto":  # until forward differences became its meaning
        recorded["estimator"] = _former_estimator(recorded)
    return recorded


def _former_estimator(recorded: Mapping[str, object]) -> str:
    config = Config({**recorded, "estimator": "two-point"})
    return "exact" if config.model.is_linear and config.zo.objective == "loss" else "two-point"


@cache
def sections() -> Mapping[str, type[Section]]:
    """The sections of a configuration, by name."""
    kinds: dict[str, Any] = {each.name: each.default_factory for each in fields(Config)}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type)}


@cache
def _fields() -> Mapping[tuple[str, str], Option]:
    return {
        (where, name): each
        for where, section in sections().items()
        for name, each in options_of(section).items()
    }


@cache
def _path_fields() -> Mapping[tuple[str, str], Option]:
    return {place: each for place, each in _fields().items() if each.path}


@cache
def settings() -> Mapping[str, Option]:
    """Every declared setting by its flat key, in the order of the sections."""
    return {each.key: each for each in _fields().values()}


@cache
def _spellings() -> Mapping[str, str]:
    """Flat keys by each dotted spelling: ``bp.interval`` and ``bp.bp-interval``."""
    short = {f"{where}.{hyphenate(name)}": each.key for (where, name), each in _fields().items()}
    return short | {f"{where}.{each.key}": each.key for (where, _), each in _fields().items()}


def flat_settings(given: Mapping[Any, object]) -> dict[str, object]:
    """Settings by their flat keys: sections resolved, hyphens for underscores, aliases replaced.

    Raises:
        ConfigError: a key is no text, or a setting is given twice.
    """
    values: dict[str, object] = {}
    spelled: dict[str, str] = {}
    former: dict[str, object] = {}
    for spelling, value in _leaves(given):
        key = flat_key(spelling)
        if key in spelled:
            raise ConfigError(f"{key} is given twice: as {spelled[key]} and as {spelling}")
        spelled[key] = spelling
        (former if key in ALIASES else values)[key] = value
    for key, value in former.items():
        values = {**dict.fromkeys(ALIASES[key], value), **values}
    return values


def flat_key(spelling: str) -> str:
    """The flat key that a spelling means: ``zo.eps`` and ``eps`` are one, as are _ and -."""
    key = hyphenate(spelling)
    if key in _spellings():
        return _spellings()[key]
    where, dot, last = key.partition(".")
    return last if dot and (where in sections() or where == OPTIONS) else key


def _leaves(given: Mapping[Any, object]) -> Iterator[tuple[str, object]]:
    if wrong := [key for key in given if not isinstance(key, str)]:
        raise unknown_setting(str(wrong[0]), [])
    for key, value in given.items():
        if isinstance(value, Mapping) and (hyphenate(key) in sections() or key == OPTIONS):
            yield from ((f"{key}.{name}", each) for name, each in _leaves(value))
        else:
            yield key, value


def _option_value(key: str, value: object) -> Value:
    """A value of a component's option, as far as can be told without the component."""
    if not isinstance(value, str | int | float | bool):
        raise unknown_setting(key, [])
    return value


def unknown_setting(name: str, others: list[str]) -> ConfigError:
    """The error for a name that no section, and no component, declares."""
    close = nearest_names(hyphenate(name), [*settings(), *others])
    guess = f"; did you mean {' or '.join(close)}?" if close else ";"
    return ConfigError(f"unknown setting {name!r}{guess} All of them: dandelion settings")


def to_toml(values: Mapping[str, Value]) -> str:
    """One ``key = value`` line per setting; ``tomllib.loads`` gives the same mapping back."""
    return "".join(f"{key} = {_toml_value(value)}\n" for key, value in values.items())


def _toml_value(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON escapes what TOML does, but for DEL; beyond ASCII its escapes would not be TOML's.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


RESUMABLE = frozenset(key for key, each in settings().items() if each.resumable)
