"""A registry finds what the modules of its package registered, and says what it knows."""

import sys

import pytest

from shared.base.errors import ConfigError, UnknownNameError
from shared.base.registry import Registry
from shared.codecs import CODECS
from shared.data.documents import DATASETS
from shared.directions import DIRECTIONS
from shared.models.model import FORWARDS, MODELS
from shared.optimizers import OPTIMIZERS


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package ``fruit`` of two modules and a sub-package that must not be imported."""
    folder = tmp_path / "fruit"
    (folder / "kernels").mkdir(parents=True)
    (folder / "__init__.py").write_text(
        "from shared.base.registry import Registry\nFRUIT = Registry('fruit', 'fruit')\n"
    )
    for name, value in (("pear", 1), ("apple", 2)):
        (folder / f"{name}.py").write_text(
            f"from fruit import FRUIT\n@FRUIT.register('{name}')\ndef {name}(): return {value}\n"
        )
    (folder / "kernels" / "__init__.py").write_text("raise ImportError('no such device')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for module in [name for name in sys.modules if name.partition(".")[0] == "fruit"]:
        del sys.modules[module]


def test_the_modules_of_the_package_are_found_at_the_first_look_up(package):
    from fruit import FRUIT

    assert "fruit.pear" not in sys.modules
    assert FRUIT["pear"]() == 1
    assert FRUIT.names() == ["apple", "pear"]


def test_sub_packages_are_left_alone(package):
    from fruit import FRUIT

    assert FRUIT.names() == ["apple", "pear"]
    assert "fruit.kernels" not in sys.modules


def test_a_new_file_is_all_that_a_new_name_takes(package):
    (package / "plum.py").write_text(
        "from fruit import FRUIT\nfor n in ('plum', 'sloe'): FRUIT.register(n)(n)\n"
    )
    from fruit import FRUIT

    assert FRUIT.names() == ["apple", "pear", "plum", "sloe"]


def test_an_unknown_name_lists_the_known_ones(package):
    from fruit import FRUIT

    with pytest.raises(UnknownNameError, match=r"^unknown fruit 'nut'; known: apple, pear$"):
        FRUIT["nut"]
    assert issubclass(UnknownNameError, ConfigError)


def test_a_name_registered_twice_is_an_error_of_the_programmer():
    registry = Registry("fruit", "shared")
    registry.register("pear")("one")
    registry.register("pear")("one")  # the same again, as a reload does
    with pytest.raises(ValueError, match="fruit 'pear' is registered twice"):
        registry.register("pear")("two")


def test_registering_gives_back_what_was_registered():
    def pear():
        return 1

    assert Registry("fruit", "shared").register("pear")(pear) is pear


def test_a_module_that_fails_is_not_hidden_and_can_be_mended(package):
    from fruit import FRUIT

    (package / "rotten.py").write_text("import no_such_module\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        FRUIT.names()
    (package / "rotten.py").unlink()
    assert FRUIT.names() == ["apple", "pear"]


@pytest.mark.parametrize("registry", [CODECS, DATASETS, DIRECTIONS, FORWARDS, MODELS, OPTIMIZERS],
                         ids=lambda registry: registry.kind)  # fmt: skip
def test_our_own_registries_are_filled_and_every_name_can_be_looked_up(registry):
    assert registry.names()
    things = [registry[name] for name in registry.names()]
    assert all(callable(getattr(thing, "load", thing)) for thing in things)
