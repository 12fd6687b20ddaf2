"""Options belong to the components of a run: its mode, optimizer, directions, codec, aggregation.

A component is what a registry holds under the name that a setting gives. It declares its options
with ``shared.base.options.option``; unless one is given, its own default holds. A new component,
from a file of its registry's package or from a plug-in, needs no other file to be changed.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module

from shared.base.errors import ConfigError
from shared.base.options import Option, Value, options_of
from shared.base.registry import Registry, registry_of
from shared.config.schema import ALIASES, Config, flat_key, settings, unknown_setting

# The module that declares each registry, by the setting that chooses from it; imported when needed.
HOMES: Mapping[str, str] = {
    "mode": "shared.modes.mode",
    "optimizer": "shared.optimizers",
    "directions": "shared.directions",
    "codec": "shared.codecs",
    "aggregation": "shared.aggregation",
}


def components(kind: str) -> Registry[object]:
    """The registry that a setting chooses from."""
    import_module(HOMES[kind])
    return registry_of(kind)


def list_options() -> Iterator[tuple[str, str, Option]]:
    """Every option of every component that is installed: kind, component, option."""
    for kind in HOMES:
        for name in components(kind).names():
            for each in options_of(components(kind)[name]).values():
                yield kind, name, each


def component_options() -> dict[str, Option]:
    """The options of all components by key; the first component's, if several have one."""
    options: dict[str, Option] = {}
    for _, _, each in list_options():
        options.setdefault(each.key, each)
    return options


def options_in_use(config: Config) -> dict[str, tuple[str, Option]]:
    """The options of the components that a configuration chooses, by key; and whose each is.

    Raises:
        UnknownNameError: no component has the name.
    """
    chosen = config.to_run_config()
    return {
        each.key: (f"{kind} {chosen[kind]!r}", each)
        for kind in HOMES
        for each in options_of(components(kind)[str(chosen[kind])]).values()
    }


def effective_options(config: Config) -> dict[str, Value]:
    """What the options of the chosen components are: those given, else their own defaults."""
    defaults = {key: each.default for key, (_, each) in options_in_use(config).items()}
    return defaults | config.options


def with_own_options(config: Config) -> Config:
    """The configuration with the given options that matter: those that differ from the defaults.

    A default of a component that is not chosen may be given too: former configurations name all.

    Raises:
        ConfigError: no component has such an option, the chosen ones do not, or a value is not one
            of it.
    """
    chosen, options = options_in_use(config), dict[str, Value]()
    for key, value in config.options.items():
        if key in chosen:
            options[key] = chosen[key][1].check(value)
            if options[key] == chosen[key][1].default:
                del options[key]
        else:
            _check_unused(config, key, value)
    if options == config.options:
        return config
    return Config({k: v for k, v in config.to_run_config().items() if k in settings()} | options)


def _check_unused(config: Config, key: str, value: Value) -> None:
    """Refuse an option that no chosen component declares, unless it is another's default."""
    others = [(kind, each) for kind, _, each in list_options() if each.key == key]
    if not others:
        raise unknown_setting(key, list(component_options()))
    if any(each.check(value) == each.default for _, each in others):
        return
    kinds = list(dict.fromkeys(kind for kind, _ in others))
    kind = next((kind for kind in kinds if kind != "mode"), kinds[0])
    name = str(config.to_run_config()[kind])
    own = ", ".join(sorted(o.key for o in options_of(components(kind)[name]).values())) or "none"
    raise ConfigError(f"{key} = {value!r} has no effect with {kind} {name!r}; its options: {own}")


def option_of(spelling: str) -> Option:
    """The declaration of a setting, or of a component's option, in any of its spellings.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    key, options = flat_key(spelling), component_options()
    known = settings().get(key) or options.get(key)
    if known is None:
        raise unknown_setting(spelling, list(options))
    return known


def parse(spelling: str, text: str) -> Value:
    """Read a value from the command line as its setting's own type.

    Raises:
        ConfigError: there is no such setting, or the text is not a value of its type.
    """
    if flat_key(spelling) in ALIASES:
        return option_of(ALIASES[flat_key(spelling)][0]).parse(text)
    return option_of(spelling).parse(text)


def all_keys() -> list[str]:
    """The keys of all settings, those of components included."""
    return [*settings(), *component_options()]
