"""The examples in the docstrings of what ``import dandelion`` offers run as they stand."""

import doctest
from importlib import import_module

import pytest

import dandelion

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
EXAMPLES = [
    *("run", "resume", "preflight", "Run"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("compare", "sweep")),
]


def examples_of(name):
    """The doctests of a public name and of its methods, in the order in which they stand."""
    target = getattr(dandelion, name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    module = import_module(target.__module__)
    tests = finder.find(target, name, module=module, globs={"dandelion": dandelion})
    return sorted((each for each in tests if each.examples), key=lambda test: test.lineno)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_a_public_name_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    tests = examples_of(name)
    assert tests
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_every_public_function_and_class_of_its_own_says_what_it_is_for():
    for name in set(dandelion.__all__) - {"__version__"}:
        assert len(getattr(dandelion, name).__doc__.splitlines()[0]) > 20, name
