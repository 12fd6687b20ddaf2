"""Common settings as options of their own, made from the settings' declarations."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Annotated, Any, TypeVar

import typer

from dandelion.settings.presets import PRESET, RECIPES
from shared.base.errors import ConfigError
from shared.base.options import Option, Value
from shared.config.schema import flat_key, settings

PANEL = "Common settings"  # of a command's help
NAMES: Mapping[str, Sequence[str]] = {  # the options of a setting; the first is the usual one
    "app": ("--app",),
    "model": ("--model",),
    "dataset": ("--data", "--dataset"),
    "mode": ("--mode",),
    "scope": ("--scope",),
    "num-rounds": ("--rounds",),
    "num-clients": ("--clients",),
    "queries": ("--queries",),
    "learning-rate": ("--lr", "--learning-rate"),
    "eps": ("--eps",),
}
COMMON = "common"  # the keyword by which a command gets those that are given
PRESET_HELP = f"Settings for a whole task, by name: {', '.join(RECIPES)}."
Command = TypeVar("Command", bound=Callable[..., Any])


def common_settings(*without: str) -> Callable[[Command], Command]:
    """Give a command an option for each common setting, in a panel of its help.

    The command gets those that the user gave, by key, as its keyword ``common``.

    Args:
        without: keys of settings that the command has no use for.
    """
    keys = [key for key in NAMES if key not in without]

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        own = [p for p in signature.parameters.values() if p.name != COMMON]
        added = [_preset_parameter(), *(_parameter(settings()[key]) for key in keys)]

        @wraps(command)
        def call(**arguments: Any) -> object:  # noqa: ANN401
            values = {each.name: arguments.pop(each.name) for each in added}
            common = {name.replace("_", "-"): v for name, v in values.items() if v is not None}
            return command(**arguments, **{COMMON: common})

        parameters = [*own, *added]
        call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {each.name: each.annotation for each in parameters}
        return call  # type: ignore[return-value]

    return decorate


def merge_common(pairs: Sequence[str], common: Mapping[str, Value]) -> list[str]:
    """Return the pairs of ``--set`` and the common settings as pairs ``key=value``.

    Raises:
        ConfigError: a setting is given by both.
    """
    check_common(pairs, common)
    texts = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in common.items()}
    return [*pairs, *(f"{key}={text}" for key, text in texts.items())]


def check_common(pairs: Sequence[str], common: Mapping[str, Value]) -> None:
    """Refuse a setting that is given by ``--set`` and by an option of its own.

    Raises:
        ConfigError: one is given by both.
    """
    if twice := sorted(_keys_of(pairs) & common.keys()):
        raise ConfigError(f"{twice[0]} is given by --set and by its own option; give it once")


def complete_setting(typed: str) -> list[str]:
    """What a shell offers for ``--set``: the keys that begin so, each with its equals sign."""
    return [f"{key}=" for key in settings() if key.startswith(flat_key(typed))]


def complete_preset(typed: str) -> list[str]:
    """What a shell offers for ``--preset``."""
    return [name for name in RECIPES if name.startswith(typed)]


def _keys_of(pairs: Sequence[str]) -> set[str]:
    return {flat_key(pair.partition("=")[0].strip()) for pair in pairs}


def _preset_parameter() -> inspect.Parameter:
    option = typer.Option(
        "--preset", help=PRESET_HELP, rich_help_panel=PANEL, autocompletion=complete_preset
    )
    return _keyword(PRESET, Annotated[str | None, option])


def _parameter(setting: Option) -> inspect.Parameter:
    """The parameter of a command that stands for a setting."""
    is_symbol = setting.meaning[1:2] == ":"  # as in q: directions of one step
    meaning = setting.meaning if is_symbol else setting.meaning[:1].upper() + setting.meaning[1:]
    default = "empty" if setting.default == "" else setting.default
    help_ = f"{meaning} [{setting.key} = {default}]"
    option = typer.Option(
        *NAMES[setting.key], help=help_.replace("[", r"\["), rich_help_panel=PANEL, metavar=None
    )
    return _keyword(setting.key.replace("-", "_"), Annotated[setting.kind | None, option])


def _keyword(name: str, annotation: object) -> inspect.Parameter:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Parameter(name, kind, default=None, annotation=annotation)
