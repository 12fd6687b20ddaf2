"""The page of settings, Flower's run config and the command all show the declarations."""

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dandelion.cli.app import app
from dandelion.settings.reference import markdown, pyproject_table, run_config
from shared.config.schema import Config
from shared.training.components import all_keys, component_options
from shared.training.validate import configure

ROOT = Path(__file__).resolve().parents[3]


def shown(*arguments):
    return CliRunner().invoke(app, ["settings", *arguments], env={"COLUMNS": "200"})


def test_the_page_of_settings_is_current():
    assert (ROOT / "docs/reference/settings.md").read_text() == markdown(), "run: make settings"


def test_pyproject_has_every_key_with_its_default_and_no_other():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert table == {**Config().to_run_config(), **dict.fromkeys(component_options(), "")}
    assert configure(table) == Config()
    assert {key: type(value) for key, value in table.items()} == {
        key: type(value) for key, value in run_config().items()
    }


def test_the_table_of_pyproject_is_written_anew_and_nothing_else():
    text = "[a]\nb = 1\n\n[tool.flwr.app.config]  # all\nmode = 'x'\n\n[c]\nd = 2\n"
    result = pyproject_table(text)
    assert result.startswith('[a]\nb = 1\n\n[tool.flwr.app.config]  # all\nmode = "zo"\n')
    assert result.endswith("\n[c]\nd = 2\n")
    assert pyproject_table(result) == result


def test_the_command_shows_every_setting_under_its_section():
    result = shown()
    assert result.exit_code == 0
    words = result.stdout.split()
    assert set(all_keys()) <= set(words)
    assert {"zo", "bp", "federation"} <= set(words)


@pytest.mark.parametrize(
    ("word", "expected", "other"),
    [("bp", "bp-interval", "momentum"), ("beta1", "beta1", "eps"), ("smoothing", "eps", "seed")],
)
def test_a_word_filters_by_key_meaning_or_section(word, expected, other):
    words = shown(word).stdout.split()
    assert expected in words
    assert other not in words


def test_a_word_that_nothing_has_names_the_nearest_settings():
    result = shown("lernrate")
    assert result.exit_code != 0
    assert "did you mean" in str(result.exception)


def test_the_command_prints_the_page():
    assert shown("--markdown").stdout == markdown()
