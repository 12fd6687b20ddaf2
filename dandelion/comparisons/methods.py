"""The methods that can be compared, and suites of several: names with their settings."""

from collections.abc import Mapping, Sequence

from dandelion.settings.gather import with_app_folder
from dandelion.settings.presets import expand_preset
from shared.base.errors import ConfigError, UnknownNameError
from shared.base.options import Value
from shared.config.schema import Config, flat_key
from shared.training.components import parse
from shared.training.validate import configure

Settings = Mapping[str, Value]
MethodSetting = tuple[str, str, Value]  # a method, or empty for all; key; value
RATES = ("learning-rate", "bp-learning-rate", "local-learning-rate")  # scaled together
RATE_STEP = 10**0.5  # from one rate that is tried to the next

FIRST_ORDER = frozenset(
    {"fo", "fo-sgd", "fedavg", "fedavg-lora", "bp-alone", "zo-exact"}
)  # every round backpropagates
AVERAGED: Settings = {"mode": "fedavg", "local-steps": 4, "learning-rate": 1e-3}
GRADIENTS: Settings = {"learning-rate": 0.5}
ADAM: Settings = {"optimizer": "adam", "learning-rate": 3e-3}  # what users of gradients would take
GUIDED: Settings = {"bp-learning-rate": 0.5}
METHODS: Mapping[str, Settings] = {
    "zo": {"mode": "zo"},
    "zo-exact": {"mode": "zo", "estimator": "exact", "queries": 256},  # from one backward pass
    "zo-dense": {"mode": "zo", "downlink": "dense"},  # the original protocol
    "calibrate": {"mode": "calibrate", **GUIDED},
    "instruct": {"mode": "instruct", **GUIDED},
    "fo": {"mode": "fo", **ADAM},
    "fo-sgd": {"mode": "fo", **GRADIENTS},
    "fedavg": AVERAGED,
    "fedavg-lora": {**AVERAGED, "scope": "lora", "learning-rate": 5e-3},
}
APART: Settings = {"mode": "instruct", "bp-interval": 1, "split-bp-zo-data": True, **GUIDED}
SUITES: Mapping[str, Mapping[str, Settings]] = {
    "merged": {
        "fresh-batches": {**APART, "query-data": "fresh"},
        "shared-batch": {**APART, "query-data": "shared"},
        "bp-alone": {"mode": "fo", "split-bp-zo-data": True, **GRADIENTS},
    },
    "three-modes": {name: METHODS[name] for name in ("fo", "zo", "instruct")},
}


def configurations(methods: str, suite: str, pairs: list[str], base: Settings) -> dict[str, Config]:
    """The configuration of each method, from texts ``key=value`` and ``method:key=value``.

    Args:
        methods: names, separated by commas.
        suite: of methods, in place of names.
        pairs: settings of all methods, or of one.
        base: settings that all others win over.

    Raises:
        ConfigError: an unknown method, suite or key, or an invalid value.
    """
    rows = rows_of([name.strip() for name in methods.split(",") if name.strip()], suite)
    return configure_methods(rows, [read_pair(text, rows) for text in pairs], base)


def rows_of(methods: Sequence[str], suite: str) -> Mapping[str, Settings]:
    """The settings of each method that is named, or that a suite has.

    Raises:
        ConfigError: both or neither are given, or one of them is unknown.
    """
    if suite and methods:
        raise ConfigError("--methods or --suite expected, got both")
    if suite and suite not in SUITES:
        raise UnknownNameError("suite", suite, SUITES)
    if unknown := [name for name in methods if name not in METHODS]:
        raise UnknownNameError("method", unknown[0], METHODS)
    rows = SUITES[suite] if suite else {name: METHODS[name] for name in methods}
    if not rows:
        raise ConfigError(f"--methods or --suite expected; known: {', '.join(METHODS)}")
    return rows


def configure_methods(
    rows: Mapping[str, Settings], given: Sequence[MethodSetting], base: Settings
) -> dict[str, Config]:
    """The configuration of each method; later settings win.

    In order: ``base``, the settings given for all, the method's own, and those given for it alone:
    each needs a learning rate of its own.

    Raises:
        ConfigError: an unknown key, or an invalid value.
    """
    common = {key: value for name, key, value in given if not name}
    return {
        name: configure(
            expand_preset(
                with_app_folder({**base, **common, **row, **_of_method(name, given)})
                | {"run-name": name}
            )
        )
        for name, row in rows.items()
    }


def _of_method(name: str, given: Sequence[tuple[str, str, Value]]) -> Settings:
    return {key: value for of, key, value in given if of == name}


def rates_around(config: Config, count: int) -> dict[str, Config]:
    """The configuration at ``count`` rates, in steps of RATE_STEP around its own, by run name."""
    settings = {**config.to_run_config(), RATES[0]: config.optimizer.rate}
    name = config.run.name
    rows = {}
    for step in range(-(count // 2), count - count // 2):
        scaled = {key: float(settings[key]) * RATE_STEP**step for key in RATES}
        run = f"{name}-rate-{scaled[RATES[0]]:.3g}" if step else name
        rows[run] = config.replace(**scaled, **{"run-name": run}) if step else config
    return rows


def read_pair(text: str, rows: Mapping[str, Settings]) -> MethodSetting:
    """Read ``key=value`` or ``method:key=value``.

    Raises:
        ConfigError: another form, or no such method or key.
    """
    left, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set key=value or --set method:key=value expected, got {text!r}")
    name, colon, key = left.rpartition(":")
    if colon and name.strip() not in rows:
        raise UnknownNameError("method", name.strip(), rows)
    return name.strip(), flat_key(key.strip()), parse(key.strip(), value.strip())
