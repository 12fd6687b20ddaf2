"""Settings survive their TOML text, whatever is in them."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config.schema import to_toml

values = st.one_of(
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)
keys = st.from_regex(r"[A-Za-z0-9_-]+", fullmatch=True)


@given(st.dictionaries(keys, values))
def test_settings_survive_their_text(settings):
    result = tomllib.loads(to_toml(settings))
    assert result == settings
    assert {key: type(value) for key, value in result.items()} == {
        key: type(value) for key, value in settings.items()
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (False, "false"),
        (16, "16"),
        (1e-8, "1e-08"),
        (3600.0, "3600.0"),
        ("byte-gpt", '"byte-gpt"'),
        ("", '""'),
        ('say "no"\\', '"say \\"no\\"\\\\"'),
        ("läufe/😀", '"läufe/😀"'),
        ("bell\x07 del\x7f", '"bell\\u0007 del\\u007f"'),
    ],
)
def test_a_value_is_written_as_toml_has_it(value, text):
    assert to_toml({"key": value}) == f"key = {text}\n"
    assert tomllib.loads(to_toml({"key": value})) == {"key": value}


def test_one_line_per_setting_in_the_order_given():
    assert to_toml({"b": 1, "a": 2}) == "b = 1\na = 2\n"
    assert to_toml({}) == ""
