"""A configuration is typed and checked before anything is sent, or a ConfigError says why not."""

import tomllib
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base.errors import ConfigError, UnknownNameError
from shared.config.schema import CHOICES, OPERATIONAL, Config, parse
from shared.config.toml_text import to_toml
from shared.data.documents import DATASETS
from shared.directions import DIRECTIONS
from shared.optimizers import OPTIMIZERS

DEFAULTS = Config().to_run_config()
PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def test_the_defaults_pass_their_own_check():
    assert Config.from_run_config({}) == Config()
    assert Config.from_run_config(DEFAULTS) == Config()


def test_pyproject_has_every_key_with_its_default_and_no_other():
    app = tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]["config"]
    assert app == DEFAULTS
    assert {key: type(value) for key, value in app.items()} == {
        key: type(value) for key, value in DEFAULTS.items()
    }


def test_keys_are_field_names_with_hyphens():
    assert {key.replace("-", "_") for key in DEFAULTS} == set(Config.__dataclass_fields__)
    assert not any("_" in key for key in DEFAULTS)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Config().queries = 3


def test_an_unknown_key_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown keys \['querys'\]; known: adam-epsilon, ") as e:
        Config.from_run_config({"querys": 3})
    assert all(key in str(e.value) for key in DEFAULTS)


def test_unknown_keys_of_any_kind_are_all_named():
    with pytest.raises(ConfigError, match=r"\['3', 'None', 'b'\]"):
        Config.from_run_config({"b": 1, 3: 1, None: 1})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("queries", "16", "queries: int expected, got str '16'"),
        ("queries", 16.0, "queries: int expected, got float 16.0"),
        ("queries", True, "queries: int expected, got bool True"),
        ("queries", None, "queries: int expected, got NoneType None"),
        ("eps", "small", "eps: float expected, got str 'small'"),
        ("eps", True, "eps: float expected, got bool True"),
        ("mode", 1, "mode: str expected, got int 1"),
        ("save-model", 1, "save-model: bool expected, got int 1"),
        ("model", ["byte-gpt"], "model: str expected, got list"),
    ],
)
def test_a_wrong_type_names_key_expected_and_got(key, value, expected):
    with pytest.raises(ConfigError) as caught:
        Config.from_run_config({key: value})
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("queries", 0, "a number above 0"),
        ("queries", -1, "an integer from 0 to below 2**30"),
        ("num-rounds", 1 << 30, "an integer from 0 to below 2**30"),
        ("queries", 10**400, "a number of 64 bits"),
        ("eps", 10**400, "a number of 64 bits"),
        ("seed", -1, "an integer from 0 to below 2**63"),
        ("seed", 1 << 63, "an integer from 0 to below 2**63"),
        ("eps", 0.0, "a number above 0"),
        ("eps", float("nan"), "a finite number"),
        ("learning-rate", float("inf"), "a finite number"),
        ("learning-rate", -0.1, "a number above 0"),
        ("local-learning-rate", -0.1, "a number from 0"),
        ("weight-decay", -0.1, "a number from 0"),
        ("momentum", 1.0, "a number from 0 to below 1"),
        ("trim-fraction", 0.5, "below 0.5"),
        ("eval-fraction", 0.0, "a number above 0"),
        ("eval-fraction", 1.0, "a number from 0 to below 1"),
        ("block-size", 1, "at least 2 tokens"),
        ("threads", 5000, "at most 1024"),
        ("run-name", "../elsewhere", "a name without /"),
        ("run-name", "..", "a name without /"),
        ("run-name", ".", "a name without /"),
        ("output-dir", "a\0b", "text without control characters"),
        ("model", "\ud800", "text without control characters"),
    ],
)
def test_a_value_out_of_range_names_key_expected_and_got(key, value, expected):
    with pytest.raises(ConfigError) as caught:
        Config.from_run_config({key: value})
    message = str(caught.value)
    assert message.startswith(f"{key}: {expected} expected, got ")
    assert message.isprintable()


@pytest.mark.parametrize("key", CHOICES)
def test_an_unknown_choice_lists_the_known_ones(key):
    known = ", ".join(sorted(CHOICES[key]))
    with pytest.raises(UnknownNameError, match=f"unknown {key} 'none such'; known: {known}$"):
        Config.from_run_config({key: "none such"})


@pytest.mark.parametrize(
    ("key", "registry"),
    [("dataset", DATASETS), ("directions", DIRECTIONS), ("optimizer", OPTIMIZERS)],
)
def test_a_name_that_no_module_registered_lists_the_registered_ones(key, registry):
    known = ", ".join(registry.names())
    with pytest.raises(UnknownNameError, match=f"unknown {key} 'none such'; known: {known}$"):
        Config.from_run_config({key: "none such"})
    for name in registry.names():
        assert Config.from_run_config({key: name}).to_run_config()[key] == name


def test_an_unknown_scope_says_what_scopes_look_like():
    with pytest.raises(UnknownNameError, match="scope 'half'; known: bias, full, head, lora, red"):
        Config.from_run_config({"scope": "half"})
    assert Config.from_run_config({"scope": "regex:wte"}).scope == "regex:wte"


def test_an_integer_is_taken_for_a_number():
    config = Config.from_run_config({"eps": 1})
    assert config.eps == 1.0
    assert type(config.eps) is float


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({"aggregation": "median", "seed-schedule": "independent"}, "needs seed-schedule 'shared'"),
        ({"num-clients": 70_000, "seed-schedule": "independent"}, "at most 65535"),
        ({"aggregation": "krum", "malicious-clients": 2, "min-clients": 4}, "min-clients >= 5"),
        ({"aggregation": "multi-krum", "min-clients": 3}, "min-clients >= 4, got 3"),
        ({"aggregation": "bulyan", "min-clients": 6}, "min-clients >= 7, got 6"),
        ({"queries": 1024, "local-steps": 65}, "at most 65536 expected, got 66560"),
        ({"clients-per-round": 2, "min-clients": 3}, "at least min-clients = 3 expected, got 2"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum = 0.9 has no effect with optimizer 'a"),
        ({"optimizer": "adam", "cautious": True}, "cautious = True has no effect"),
        ({"beta1": 0.8}, "beta1 = 0.8 has no effect with optimizer 'sgd'"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(given_, expected):
    with pytest.raises(ConfigError, match=expected):
        Config.from_run_config(given_)


@pytest.mark.parametrize(
    "given_",
    [
        {"aggregation": "krum", "malicious-clients": 2, "min-clients": 5},
        {"aggregation": "bulyan", "min-clients": 7},
        {"aggregation": "median"},
        {"aggregation": "mean", "seed-schedule": "independent"},
        {"queries": 1024, "local-steps": 64},
        {"clients-per-round": 3, "min-clients": 3},
        {"optimizer": "mudamw", "cautious": True, "beta1": 0.8, "adam-epsilon": 1e-6},
        {"mode": "fedavg", "beta2": 0.99},
    ],
)
def test_settings_that_just_work_together_are_taken(given_):
    assert given_.items() <= Config.from_run_config(given_).to_run_config().items()


texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]))
changes = st.fixed_dictionaries(
    {},
    optional={
        "queries": st.integers(1, 1000),
        "seed": st.integers(0, (1 << 63) - 1),
        "eps": st.floats(1e-300, 1e300),
        "learning-rate": st.floats(5e-324, 1.7e308),
        "momentum": st.floats(0, 1, exclude_max=True),
        "save-model": st.booleans(),
        "model": texts,
        "output-dir": texts,
        "resume": texts,
        "scope": texts.map("regex:".__add__),
    },
)


@given(changes)
@settings(deadline=None, max_examples=100)
def test_a_configuration_survives_its_toml_file(given_):
    config = Config.from_run_config(given_)
    read = tomllib.loads(to_toml(config.to_run_config()))
    assert Config.from_run_config(read) == config


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
    st.integers(-(10**400), 10**400), st.lists(st.integers()), st.just(b"zo"),
    st.sampled_from(["regex:(", "zo", "independent", "bulyan", "..", "a/b", "nan"]),
)  # fmt: skip


@given(
    st.dictionaries(
        st.one_of(st.sampled_from(sorted(DEFAULTS)), st.text(), st.integers()), anything, max_size=6
    )
)
@settings(deadline=None, max_examples=300)
def test_any_mapping_is_a_configuration_or_a_config_error(given_):
    try:
        config = Config.from_run_config(given_)
    except ConfigError:
        return
    assert Config.from_run_config(config.to_run_config()) == config


@given(st.sampled_from(sorted(DEFAULTS)), anything)
@settings(deadline=None, max_examples=500)
def test_any_value_of_a_known_key_is_kept_or_a_config_error(key, value):
    try:
        config = Config.from_run_config({key: value})
    except ConfigError:
        return
    expected = float(value) if type(DEFAULTS[key]) is float else value
    assert config.to_run_config()[key] == expected


@pytest.mark.parametrize("key", DEFAULTS)
def test_a_default_written_out_is_parsed_as_itself(key):
    value = parse(key, str(DEFAULTS[key]))
    assert value == DEFAULTS[key]
    assert type(value) is type(DEFAULTS[key])


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("queries", "64", 64),
        ("eps", "1e-3", 1e-3),
        ("eps", "1", 1.0),
        ("cautious", "TRUE", True),
        ("cautious", "false", False),
        ("model", "20M", "20M"),
        ("run-name", "7", "7"),
        ("none-such", "7", "7"),
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
    ],
)
def test_a_text_that_is_not_of_its_keys_type_names_key_expected_and_got(key, text, expected):
    with pytest.raises(ConfigError) as caught:
        parse(key, text)
    assert str(caught.value).startswith(expected)


def test_differences_name_what_would_make_another_run_and_nothing_else():
    other = Config(queries=3, eps=0.5, num_rounds=7, run_name="b", resume="c", catch_up="replay")
    assert Config().differences(other) == [
        "queries = 16 (recorded: 3)",
        "eps = 0.001 (recorded: 0.5)",
    ]
    assert Config().differences(Config()) == []


def test_operational_keys_are_keys():
    assert set(DEFAULTS) > OPERATIONAL
