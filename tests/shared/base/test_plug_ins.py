"""Plug-ins: an installed package registers components, and counts as a source of the run."""

import sys

import pytest

from shared.base.errors import ConfigError
from shared.base.files import code_digest
from shared.base.plug_ins import list_plug_ins, plug_in_sources
from shared.base.registry import Registry

FRUIT = "from shared.base.registry import registry_of\nregistry_of('fruit').register({!r})({!r})\n"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that installs a package with one module, as a plug-in of kind ``fruit``."""
    (tmp_path / "fruit").mkdir()
    (tmp_path / "fruit" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def install(name, text, kind="fruit", point=None):
        (tmp_path / f"{name}.py").write_text(text)
        metadata = tmp_path / f"{name}-2.1.dist-info"
        metadata.mkdir(exist_ok=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.1\n")
        points = f"[dandelion.{kind}]\n{name} = {point or name}\n"
        (metadata / "entry_points.txt").write_text(points)

    yield install
    code_digest.cache_clear()
    for module in set(sys.modules) - before:
        del sys.modules[module]


def test_what_a_package_names_is_registered_at_the_first_look_up(install):
    fruit = Registry("fruit", "fruit")
    install("orchard", FRUIT.format("pear", 1))
    assert fruit["pear"] == 1
    assert list_plug_ins() == ["orchard 2.1"]


def test_a_name_that_is_taken_is_refused_with_both_owners_and_the_package(install):
    fruit = Registry("fruit", "fruit")
    fruit.register("pear")(test_what_a_package_names_is_registered_at_the_first_look_up)
    install("orchard", FRUIT.format("pear", 1))
    with pytest.raises(
        ConfigError, match=r"the plug-in orchard = orchard of orchard 2\.1"
    ) as caught:
        fruit.names()
    assert "fruit 'pear' is registered twice" in str(caught.value)
    assert "at_the_first_look_up has the name, builtins.int wants it" in str(caught.value)


def test_a_package_that_cannot_be_imported_is_named_at_every_look_up(install):
    fruit = Registry("fruit", "fruit")
    install("orchard", FRUIT.format("pear", 1) + "import no_such_module\n")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"orchard 2\.1 .*No module named 'no_such_module'"):
            fruit.names()


def test_the_digest_of_source_files_covers_them_and_no_import_is_made(install):
    before = code_digest()
    install("orchard", "raise SystemExit\n", kind="optimizers")
    code_digest.cache_clear()
    with_plug_in = code_digest()
    install("orchard", "raise SystemExit(1)\n", kind="optimizers")
    code_digest.cache_clear()
    assert len({before, with_plug_in, code_digest()}) == 3
    assert "orchard" not in sys.modules
    assert [path.name for path in plug_in_sources().values()] == ["orchard.py"]


def test_a_plug_in_without_source_files_is_refused(install):
    install("orchard", "", point="absent_module")
    with pytest.raises(ConfigError, match=r"orchard of orchard 2\.1, got absent_module"):
        plug_in_sources()
