"""The documentation is true: its links, paths, commands and settings exist, and README is short."""

import os
import subprocess
import sys
from functools import cache
from importlib import import_module

import pytest
import typer
from pages import GENERATED, PAGES, ROOT, anchors, blocks, commands, links, paths, text_of

from client.site.node_config import NodeConfig
from dandelion.cli.app import app
from docs.generate import page as command_page
from docs.python_api import markdown
from docs.python_api import page as api_page
from docs.site_hooks import on_page_markdown
from shared.base.options import options_of
from shared.base.registry import Registry
from shared.config.schema import Config

README_LINES = 150
WRITTEN = [page for page in PAGES if page not in GENERATED]
SETTINGS_OF_A_NODE = (("client", "join"), ("client", "guard"))
KINDS = (
    ("shared.optimizers", "OPTIMIZERS"),
    ("shared.directions", "DIRECTIONS"),
    ("shared.codecs", "CODECS"),
    ("shared.modes.mode", "MODES"),
    ("shared.aggregation", "AGGREGATION"),
)
every_page = pytest.mark.parametrize("page", PAGES)
every_written_page = pytest.mark.parametrize("page", WRITTEN)


def node_settings():
    return {name.replace("_", "-") for name in NodeConfig.__dataclass_fields__}


@cache
def run_settings():
    """The keys of the configuration, and those of the components that it names."""
    keys = set(Config().to_run_config())
    for module, name in KINDS:
        registry = getattr(import_module(module), name, None)
        for each in registry.names() if isinstance(registry, Registry) else ():
            target = registry[each]
            declared = {**options_of(target), **options_of(getattr(target, "options", None))}
            keys |= {option.key for option in declared.values()}
    return keys


@cache
def whole_command():
    """``dandelion`` with everything under it; to build it takes 80 ms."""
    return typer.main.get_command(app)


def resolve(words):
    """The command that these words call, its name, and the words that are left for it."""
    command, name = whole_command(), []
    while words and words[0] in getattr(command, "commands", {}):
        command, name, words = command.commands[words[0]], [*name, words[0]], words[1:]
    return command, tuple(name), words


def is_known(command):
    """Whether the command exists, and has every option that is given."""
    target, name, rest = resolve(command.words)
    if not name or (hasattr(target, "commands") and rest and not rest[0].startswith("-")):
        return False
    options = {option for each in target.params for option in each.opts + each.secondary_opts}
    return {word.partition("=")[0] for word in rest if word.startswith("-")} <= {*options, "--help"}


def unknown_settings(command):
    """The keys that it sets or varies and that no configuration has."""
    _, name, _ = resolve(command.words)
    known = node_settings() if name in SETTINGS_OF_A_NODE else run_settings()
    pairs = [pair for each in ("--set", "--grid", "--search") for pair in command.values(each)]
    return {key.rpartition(":")[2] for key, _ in pairs} - known - {"KEY"}


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= README_LINES


def test_the_readme_begins_with_the_two_commands():
    first = blocks("README.md")[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["make demo", "make test"]


@pytest.mark.slow
def test_the_lines_of_python_run_as_they_stand(tmp_path):
    (code,) = [block for block in blocks("README.md") if block.startswith("import dandelion")]
    assert len(code.strip().splitlines()) <= 10
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nassert run.rounds == 25\n"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"loss.png", "model-after-10", "runs"} == {path.name for path in tmp_path.iterdir()}
    assert "Verification(rounds=20, digests=21" in done.stdout


def test_the_make_targets_that_pages_name_exist():
    makefile = text_of("Makefile")
    named = {
        line.split()[1]
        for page in WRITTEN
        for block in blocks(page)
        for line in block.splitlines()
        if line.startswith("make ")
    }
    assert named >= {"demo", "test"}
    assert all(f"\n{target}:" in makefile for target in named)


@every_page
def test_every_link_leads_to_a_file_and_a_heading_of_it(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@every_page
def test_every_path_in_backticks_exists(page):
    missing = [path for path in paths(page) if not any(ROOT.glob(path.rstrip("/")))]
    assert not missing


@every_written_page
def test_every_command_exists_with_its_options(page):
    assert [each.text for each in commands(page) if not is_known(each)] == []


@every_written_page
def test_every_setting_of_a_command_exists(page):
    assert [each.text for each in commands(page) if unknown_settings(each)] == []


def test_the_page_of_commands_is_what_the_commands_declare():
    assert text_of("docs/reference/cli.md") == command_page(), "run: make reference"


def test_the_page_of_the_python_api_is_what_the_docstrings_say():
    assert text_of("docs/reference/python-api.md") == api_page(), "run: make reference"


def test_a_docstring_becomes_markdown():
    text = """Train a run.

Args:
    config: a ``Config``, or
        a path.
    more: any setting.

Raises:
    ConfigError: bad settings.

Example:
    >>> 1 + 1
    2
"""
    assert markdown(text).split("\n\n") == [
        "Train a run.",
        "Args:",
        "- `config`: a `Config`, or a path.\n- `more`: any setting.",
        "Raises:",
        "- `ConfigError`: bad settings.",
        "```python\n>>> 1 + 1\n2\n```\n",
    ]


def test_every_page_is_in_the_navigation_of_the_site_once():
    navigation = text_of("mkdocs.yml").partition("\nnav:")[2]
    pages = [page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")]
    assert [page for page in pages if navigation.count(f": {page}\n") != 1] == []


def test_the_site_names_files_outside_of_it_instead_of_linking_to_them():
    text = "See [the map](../ARCHITECTURE.md#folders), [a page](results.md) and ![x](demo.png)."
    assert on_page_markdown(text, source="index.md") == (
        "See the map (`ARCHITECTURE.md`), [a page](results.md) and ![x](demo.png)."
    )
    assert on_page_markdown("[x](../index.md)", source="how-to/sweep.md") == "[x](../index.md)"
