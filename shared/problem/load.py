"""A problem is imported by its name, once in a process, with the examples that it has loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from shared.base.errors import ConfigError, DandelionError, DataError
from shared.data.examples import Examples
from shared.problem.problem import Problem, Site
from shared.problem.source import source_files, use_folder
from shared.problem.table import ExampleTable, Numbers, examples_of


@dataclass(frozen=True)
class LoadedProblem:
    """A problem, its name ``module:attribute``, and the examples that this process has loaded."""

    app: str
    problem: Problem
    table: ExampleTable

    def training(self) -> Examples:
        """All examples, to be shared out.

        Raises:
            DataError: they cannot be read.
        """
        data, numbers = self._load("examples", self.problem.examples)
        groups = self.problem.groups
        return examples_of(numbers, None if groups is None else groups(data))

    def examples(self, site: Site) -> Examples:
        """The examples of a site, for a problem whose function takes one.

        Raises:
            DataError: they cannot be read.
        """
        return examples_of(self._load(site, lambda: self.problem.examples(site))[1])

    def evaluation(self) -> Examples | None:
        """The examples that the server evaluates on; None if the problem names none.

        Raises:
            DataError: they cannot be read.
        """
        if self.problem.evaluation is None:
            return None
        return examples_of(self._load("evaluation", self.problem.evaluation)[1])

    def _load(self, name: str | Site, make: Callable[[], Any]) -> tuple[Any, Numbers]:
        """What a function of the problem returns, and the numbers (n,) of its examples.

        Raises:
            DataError: it fails, or returns no examples.
        """
        try:
            return self.table.load(name, make)
        except DandelionError:
            raise
        except Exception as error:  # the user's function may raise anything
            what = "examples" if isinstance(name, Site) else name
            raise DataError(f"app {self.app!r}: {what}: {type(error).__name__}: {error}") from error

    def check_data(self, data: str) -> None:
        """Refuse a node's own data if the problem cannot use it.

        Raises:
            DataError: its function takes no site.
        """
        if data and not self.problem.takes_site:
            raise DataError(
                f"app {self.app!r}: data = {data!r} of this node: examples(site) expected in the "
                "problem, which reads site.data; its function takes no site"
            )


def load_problem(app: str, folder: str = "") -> LoadedProblem:
    """Import ``module:attribute``; the same object at every call.

    Args:
        app: the setting.
        folder: where the module may lie, beside the usual places.

    Raises:
        ConfigError: there is no such module or attribute, it fails, or it is no ``Problem``.
    """
    use_folder(folder)
    return _load(app)


@cache
def _load(app: str) -> LoadedProblem:
    name, _, attribute = app.partition(":")
    source_files(name)  # says what to do if there is no such module
    try:
        value = getattr(import_module(name), attribute)
    except Exception as error:  # the user's module may raise anything
        raise ConfigError(f"app {app!r}: {type(error).__name__}: {error}") from error
    if not isinstance(value, Problem):
        raise ConfigError(f"app {app!r}: a Problem expected, got {type(value).__name__}")
    return LoadedProblem(app, value, ExampleTable(value.collate))
