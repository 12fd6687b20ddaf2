"""A configuration is typed and checked when it is made, or a ConfigError says why not."""

import copy
import tomllib
from dataclasses import FrozenInstanceError
from math import isnan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base.errors import ConfigError, UnknownNameError
from shared.base.options import options_of
from shared.config.schema import ALIASES, RESUMABLE, Config, flat_settings, sections, to_toml
from shared.config.schema import settings as declared
from shared.config.sections import ZoSettings

DEFAULTS = Config().to_run_config()
CHOICES = {key: each.choices for key, each in declared().items() if each.choices}


def test_the_defaults_pass_their_own_check():
    assert Config({}) == Config() == Config(DEFAULTS) == Config.from_run_config(DEFAULTS)
    assert hash(Config(DEFAULTS)) == hash(Config())


def test_a_configuration_survives_pickling_and_copying():
    config = Config(queries=3, beta1=0.8)
    assert copy.deepcopy(config) == config


def test_a_key_belongs_to_one_setting_of_one_section():
    keys = [each.key for section in sections().values() for each in options_of(section).values()]
    assert len(keys) == len(set(keys)) == len(DEFAULTS)
    assert not any("_" in key for key in keys)
    assert not set(ALIASES) & set(keys)


def test_every_section_and_setting_says_what_it_means():
    for section in sections().values():
        assert section.__doc__
        assert all(each.meaning for each in options_of(section).values())


def test_a_configuration_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Config().zo = ZoSettings()
    with pytest.raises(FrozenInstanceError):
        Config().zo.queries = 3


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
        Config({key: value})
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("queries", 0, "an integer from 1 to below 2**30"),
        ("queries", -3, "an integer from 1 to below 2**30"),
        ("warmup-rounds", -1, "an integer from 0 to below 2**30"),
        ("num-rounds", 1 << 30, "an integer from 1 to below 2**30"),
        ("queries", 10**400, "a number of 64 bits"),
        ("eps", 10**400, "a number of 64 bits"),
        ("seed", -1, "an integer from 0 to below 2**63"),
        ("seed", 1 << 63, "an integer from 0 to below 2**63"),
        ("eps", 0.0, "a number above 0"),
        ("eps", float("nan"), "a finite number"),
        ("learning-rate", float("inf"), "a finite number"),
        ("learning-rate", -0.1, "a number from 0"),
        ("local-learning-rate", -0.1, "a number from 0"),
        ("eval-fraction", 0.0, "a number above 0 and below 1"),
        ("eval-fraction", 1.0, "a number above 0 and below 1"),
        ("site-eval-fraction", 1.0, "a number from 0 to below 1"),
        ("bp-weight", "heavy", "auto or a number from 0 to 1"),
        ("block-size", 1, "an integer from 2 to below 2**30"),
        ("threads", 5000, "an integer from 1 to 1024"),
        ("staleness", 2, "an integer from 0 to 1"),
        ("run-name", "../elsewhere", "a name without /"),
        ("run-name", "..", "a name without /"),
        ("run-name", ".", "a name without /"),
        ("output-dir", "a\0b", "text without control characters"),
        ("model", "\ud800", "text without control characters"),
    ],
)
def test_a_value_out_of_range_is_refused_when_the_configuration_is_made(key, value, expected):
    with pytest.raises(ConfigError) as caught:
        Config({key: value})
    message = str(caught.value)
    assert message.startswith(f"{key}: {expected} expected, got ")
    assert message.isprintable()


def test_a_section_checks_its_values_as_well():
    with pytest.raises(ConfigError, match="queries: an integer from 1 "):
        ZoSettings(queries=-3)


def test_the_largest_seed_is_taken_exactly():
    assert Config(seed=(1 << 63) - 1).training.seed == (1 << 63) - 1


@pytest.mark.parametrize("key", CHOICES)
def test_an_unknown_choice_lists_the_known_ones(key):
    known = ", ".join(sorted(CHOICES[key]))
    with pytest.raises(UnknownNameError, match=f"unknown {key} 'none such'; known: {known}$"):
        Config({key: "none such"})


def test_an_unknown_scope_says_what_scopes_look_like():
    with pytest.raises(
        UnknownNameError, match="scope 'half'; known: bias, full, head, last:<blocks>, "
    ):
        Config(scope="half")
    assert Config(scope="regex:wte").model.scope == "regex:wte"


def test_an_integer_is_taken_for_a_number():
    config = Config(eps=1)
    assert config.zo.eps == 1.0
    assert type(config.zo.eps) is float


@pytest.mark.parametrize(
    "spelling",
    [
        {"bp-interval": 3},
        {"bp_interval": 3},
        {"bp.interval": 3},
        {"bp.bp-interval": 3},
        {"bp": {"interval": 3}},
        {"bp": {"bp_interval": 3}},
    ],
)
def test_a_setting_has_several_spellings(spelling):
    assert Config(spelling) == Config(bp_interval=3)
    assert flat_settings(spelling) == {"bp-interval": 3}


def test_sections_of_a_toml_file_are_read():
    text = """
    mode = "fo"
    [zo]
    eps = 0.01
    [model]
    name = "20M"
    [optimizer]
    name = "adam"
    beta1 = 0.8
    """
    config = Config(tomllib.loads(text))
    assert (config.training.mode, config.zo.eps, config.model.name) == ("fo", 0.01, "20M")
    assert (config.optimizer.name, config.options) == ("adam", {"beta1": 0.8})


def test_a_setting_that_is_given_twice_is_refused():
    with pytest.raises(ConfigError, match=r"eps is given twice: as eps and as zo\.eps"):
        Config({"eps": 0.1, "zo": {"eps": 0.2}})


def test_a_former_key_sets_what_became_of_it_unless_that_is_given():
    config = Config({"min-clients": 3})
    assert (config.federation.min_replies, config.federation.min_sites) == (3, 3)
    config = Config({"min_replies": 2, "min-clients": 3})
    assert (config.federation.min_replies, config.federation.min_sites) == (2, 3)


def test_keys_of_any_kind_give_an_error_of_ours():
    with pytest.raises(ConfigError, match="unknown setting '3'"):
        Config({"eps": 1.0, 3: 1, None: 1})


def test_some_settings_are_replaced_by_flat_names():
    config = Config(queries=3).replace(num_rounds=2, **{"bp-interval": 4})
    assert config == Config(queries=3, num_rounds=2, bp_interval=4)
    with pytest.raises(ConfigError, match="num-rounds"):
        config.replace(num_rounds=0)


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
    config = Config(given_)
    assert Config(tomllib.loads(to_toml(config.to_run_config()))) == config


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
    st.integers(-(10**400), 10**400), st.lists(st.integers()), st.just(b"zo"),
    st.sampled_from(["regex:(", "zo", "independent", "bulyan", "..", "a/b", "nan"]),
    st.dictionaries(st.text(), st.integers()),
)  # fmt: skip


@given(
    st.dictionaries(
        st.one_of(st.sampled_from(sorted(DEFAULTS)), st.text(), st.integers()), anything, max_size=6
    )
)
@settings(deadline=None, max_examples=300)
def test_any_mapping_is_a_configuration_or_a_config_error(given_):
    try:
        config = Config(given_)
    except ConfigError:
        return
    numbers = [each for each in config.options.values() if isinstance(each, float)]
    assert Config(config.to_run_config()) == config or any(map(isnan, numbers))


@given(st.sampled_from(sorted(DEFAULTS)), anything)
@settings(deadline=None, max_examples=500)
def test_any_value_of_a_known_key_is_taken_as_it_is_or_a_config_error(key, value):
    try:
        config = Config({key: value})
    except ConfigError:
        return
    if isinstance(value, dict):  # a section of the same name
        return
    expected = float(value) if type(DEFAULTS[key]) is float else value
    assert config.to_run_config()[key] == expected


def test_differences_name_what_would_make_another_run_and_nothing_else():
    other = Config(queries=3, eps=0.5, num_rounds=7, run_name="b", resume="c", catch_up="replay")
    assert Config().differences(other) == [
        "queries = 16 (recorded: 3)",
        "eps = 0.001 (recorded: 0.5)",
    ]
    assert Config().differences(Config()) == []
    assert Config().differences(Config(beta1=0.8)) == ["beta1 = '' (recorded: 0.8)"]


def test_settings_that_a_resumed_run_may_change_are_settings():
    assert set(DEFAULTS) > RESUMABLE
    assert {"num-rounds", "epochs", "round-timeout", "guard-tolerance"} <= RESUMABLE
    assert not {"queries", "min-replies", "seed", "dtype"} & RESUMABLE
