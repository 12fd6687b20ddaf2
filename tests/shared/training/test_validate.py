"""Names, options and combinations are checked when a configuration enters a program."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base.errors import ConfigError, UnknownNameError
from shared.base.options import options_of
from shared.codecs import CODECS
from shared.config.schema import Config
from shared.config.schema import settings as declared_settings
from shared.data.documents import DATASETS
from shared.directions import DIRECTIONS
from shared.modes.mode import MODES
from shared.optimizers import OPTIMIZERS
from shared.training.components import (
    HOMES,
    all_keys,
    component_options,
    components,
    effective_options,
    list_options,
    options_in_use,
    parse,
)
from shared.training.validate import configure, validate

DEFAULTS = Config().to_run_config()
LION = '''
from dataclasses import KW_ONLY, dataclass, field
import torch
from shared.base.flat import Layout
from shared.base.options import option
from shared.optimizers import OPTIMIZERS

@OPTIMIZERS.register("lion")
@dataclass
class Lion:
    """Chen et al. 2023."""

    layout: Layout
    device: str = "cpu"
    _: KW_ONLY
    beta1: float = option(0.9, "of the update", at_least=0, below=1)
    beta2: float = option(0.99, "of the mean", at_least=0, below=1)
    exact = True
    additive = False

    def state(self):
        return {}
'''
WARMUP = """
from dataclasses import dataclass
from shared.base.options import option
from shared.modes.mode import GRADIENT, MEASURE, MODES, Mode, plan_of
from shared.training.validate import configure

@dataclass(frozen=True)
class Options:
    gradient_rounds: int = option(2, "rounds that backpropagate first", at_least=1)

MODES.register("warmup")(
    Mode(
        lambda c, t: GRADIENT if t <= c.options.get("gradient-rounds", 2) else MEASURE,
        options=Options,
    )
)
config = configure({"mode": "warmup", "gradient_rounds": 3})
assert [plan_of(config, t).measure for t in (1, 2, 3, 4)] == [False, False, False, True]
"""
REPLICA = """
from shared.training.oracle import Oracle
from shared.training.validate import configure
from shared.training.components import effective_options, parse
from shared.base.errors import ConfigError

config = configure({"optimizer": "lion", "beta1": parse("beta1", "0.95")})
optimizer = Oracle.of(config).replica.optimizer
assert (optimizer.beta1, optimizer.beta2) == (0.95, 0.99), optimizer
assert effective_options(config) == {"beta1": 0.95, "beta2": 0.99}
try:
    configure({"optimizer": "lion", "momentum": 0.9})
except ConfigError as error:
    print(error)
"""


def test_the_defaults_are_valid():
    assert configure({}) == Config() == validate(Config())
    assert Config().options == {}


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("dataset", DATASETS),
        ("directions", DIRECTIONS),
        ("optimizer", OPTIMIZERS),
        ("codec", CODECS),
        ("mode", MODES),
        ("aggregation", components("aggregation")),
    ],
)
def test_a_name_that_no_module_registered_lists_the_registered_ones(key, registry):
    known = ", ".join(registry.names())
    with pytest.raises(UnknownNameError, match=f"unknown {key} 'none such'; known: {known}$"):
        configure({key: "none such"})


@pytest.mark.parametrize("key", ["dataset", "directions", "optimizer", "codec", "mode"])
def test_a_registered_name_is_taken(key):
    registries = {"dataset": DATASETS} | {kind: components(kind) for kind in HOMES}
    for name in registries[key].names():
        assert configure({key: name}).to_run_config()[key] == name


@pytest.mark.parametrize(
    ("wrong", "guess"),
    [
        ("lr", "did you mean learning-rate"),
        ("querys", "did you mean queries"),
        ("beta", "did you mean beta"),
        ("min-client", "did you mean"),
        ("zo.epsilom", "did you mean"),
    ],
)
def test_an_unknown_setting_gets_the_nearest_names_and_not_all(wrong, guess):
    with pytest.raises(ConfigError) as caught:
        configure({wrong: 1})
    message = str(caught.value)
    assert message.startswith("unknown setting ")
    assert guess in message
    assert message.endswith("All of them: dandelion settings")
    assert len(message) < 160


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({"aggregation": "median", "seed-schedule": "independent"}, "needs seed-schedule 'shared'"),
        ({"num-clients": 70_000, "seed-schedule": "independent"}, "at most 65535"),
        ({"aggregation": "krum", "malicious-clients": 2, "min-replies": 4}, "min-replies >= 5"),
        ({"aggregation": "multi-krum", "min-replies": 3}, "min-replies >= 4, got 3"),
        ({"aggregation": "bulyan", "min-clients": 6}, "min-replies >= 7, got 6"),
        ({"queries": 1024, "local-steps": 65}, "at most 65536 expected, got 66560"),
        ({"clients-per-round": 2, "min-replies": 3}, "at least min-replies = 3 expected, got 2"),
        ({"mode": "fo", "parallel-queries": 2}, "no round measures plain directions"),
        ({"mode": "calibrate", "local-steps": 2}, "a gradient is of one point"),
        ({"mode": "fedavg", "optimizer": "adam"}, "sites step by AdamW"),
        ({"mode": "fedavg", "momentum": 0.5}, "sites step by AdamW"),
        ({"mode": "fedavg", "query-data": "fresh"}, "no query is spent"),
        ({"mode": "fo", "merge-clients": True}, "merge-clients with mode = 'fo'"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(given_, expected):
    with pytest.raises(ConfigError, match=expected):
        configure(given_)


@pytest.mark.parametrize(
    "given_",
    [
        {"aggregation": "krum", "malicious-clients": 2, "min-replies": 5},
        {"aggregation": "bulyan", "min-replies": 7},
        {"aggregation": "median"},
        {"aggregation": "mean", "seed-schedule": "independent"},
        {"queries": 1024, "local-steps": 64},
        {"clients-per-round": 3, "min-replies": 3},
        {"optimizer": "mudamw", "cautious": True, "beta1": 0.8, "adam-epsilon": 1e-6},
        {"mode": "fedavg", "beta2": 0.99},
        {"codec": "topk", "topk-fraction": 0.5},
        {"directions": "lowrank", "direction-rank": 2},
    ],
)
def test_settings_that_just_work_together_are_taken(given_):
    assert given_.items() <= configure(given_).to_run_config().items()


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (
            {"beta1": 0.8},
            "beta1 = 0.8 has no effect with optimizer 'sgd'; its options: momentum, weight-decay",
        ),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum = 0.9 has no effect with optimizer 'a"),
        ({"optimizer": "adam", "cautious": True}, "cautious = True has no effect"),
        ({"topk-fraction": 0.5}, "no effect with codec 'float32'; its options: none"),
        ({"direction-rank": 2}, "no effect with directions 'rademacher'; its options: none"),
        ({"trim-fraction": 0.3}, "no effect with aggregation 'mean'; its options: none"),
        ({"optimizer": "adam", "beta1": 1.0}, "beta1: a number from 0 to below 1 expected, got 1"),
        ({"weight-decay": -0.1}, "weight-decay: a number from 0 expected, got -0.1"),
        ({"momentum": True}, "momentum: float expected, got bool True"),
        ({"aggregation": "trimmed-mean", "trim-fraction": 0.5}, "to below 0.5 expected, got 0.5"),
    ],
)
def test_an_option_is_checked_by_the_component_that_is_chosen(given_, expected):
    with pytest.raises(ConfigError, match=expected):
        configure(given_)


def test_a_default_of_any_component_may_be_given_as_former_configurations_do():
    former = {
        "momentum": 0.0, "weight-decay": 0.0, "beta1": 0.9, "beta2": 0.999, "adam-epsilon": 1e-8,
        "cautious": False, "topk-fraction": 0.01, "direction-rank": 1, "trim-fraction": 0.2,
        "malicious-clients": 1, "min-clients": 1,
    }  # fmt: skip
    assert (
        configure({**DEFAULTS, **former}) == configure({**former, "optimizer": "sgd"}) == Config()
    )
    assert configure({**former, "optimizer": "adam"}).options == {}


def test_an_empty_option_means_the_components_own_default():
    empty = dict.fromkeys(component_options(), "")
    assert configure({**DEFAULTS, **empty}) == Config()


def test_effective_options_are_the_given_ones_and_the_components_defaults():
    config = configure({"optimizer": "adam", "beta1": 0.8})
    assert effective_options(config)["beta1"] == 0.8
    assert effective_options(config)["beta2"] == 0.999
    assert options_in_use(config)["beta1"][0] == "optimizer 'adam'"


def test_a_new_optimizer_brings_its_options_and_its_own_defaults_win(tmp_path):
    """One module that registers is all: here as a plug-in would be."""
    (tmp_path / "lion.py").write_text(LION)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport lion\n{REPLICA}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "momentum = 0.9 has no effect with optimizer 'lion'; its options: beta1, beta2" in (
        done.stdout
    )


def test_a_new_mode_registers_itself_with_options_of_its_own():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WARMUP], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_options_of_components_are_no_settings_of_sections():
    assert not component_options().keys() & declared_settings().keys()
    for kind, name, each in list_options():
        assert each in options_of(components(kind)[name]).values()
        assert each.meaning


@pytest.mark.parametrize("key", all_keys())
def test_a_default_written_out_is_parsed_as_itself(key):
    default = {**DEFAULTS, **{k: each.default for k, each in component_options().items()}}[key]
    value = parse(key, str(default))
    assert value == default
    assert type(value) is type(default)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("queries", "64", 64),
        ("eps", "1e-3", 1e-3),
        ("zo.eps", "1", 1.0),
        ("num_rounds", "7", 7),
        ("cautious", "TRUE", True),
        ("cautious", "false", False),
        ("model", "20M", "20M"),
        ("run-name", "7", "7"),
        ("min-clients", "7", 7),
    ],
)
def test_a_text_is_parsed_as_its_keys_own_type(key, text, value):
    assert parse(key, text) == value
    assert type(parse(key, text)) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("queries", "many", "queries: int expected, got 'many'"),
        ("queries", "1e3", "queries: int expected, got '1e3'"),
        ("queries", "", "queries: int expected, got ''"),
        ("queries", "9" * 5000, "queries: int expected, got "),
        ("eps", "small", "eps: float expected, got 'small'"),
        ("cautious", "yes", "cautious: true or false expected, got 'yes'"),
        ("none-such", "7", "unknown setting 'none-such'"),
    ],
)
def test_a_text_that_is_not_of_its_keys_type_names_key_expected_and_got(key, text, expected):
    with pytest.raises(ConfigError) as caught:
        parse(key, text)
    assert str(caught.value).startswith(expected)


anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())


@given(st.dictionaries(st.sampled_from(sorted(all_keys())), anything, max_size=4))
@settings(deadline=None, max_examples=150)
def test_any_settings_are_a_valid_configuration_or_a_config_error(given_):
    try:
        config = configure(given_)
    except ConfigError:
        return
    assert configure(config.to_run_config()) == config
