"""The code keeps to its plan: who may import whom, how large a file is, and what the map says."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.file_map import PACKAGES, PAGE, ROOT, file_map, listed, modules

MODULES = [path.as_posix() for path in modules()]
TESTS = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "tests").rglob("*.py"))]
MAY_IMPORT = {
    "server": {"server", "shared"},
    "client": {"client", "shared"},
    "shared": {"shared"},
    "dandelion": {"dandelion", "server", "client", "shared"},
}
FLOWER = ("server/", "dandelion/", "client/app.py", "shared/protocol/flower_records.py")
UNPICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
ONE_SENTENCE = re.compile(r"[A-Z0-9`].*[.]")
SECOND_SENTENCE = re.compile(r"[a-z)][.] [A-Z]")

every_module = pytest.mark.parametrize("path", MODULES)


def tree(path):
    return ast.parse((ROOT / path).read_text())


def imports(nodes):
    """Dotted names that are imported, wherever in the file; ``from a import b`` gives ``a.b``."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def roots(path):
    return {name.partition(".")[0] for name in imports(ast.walk(tree(path)))}


def python(*lines):
    """Run code in a fresh process that warns of nothing and has arguments of no one's."""
    code = "import sys; sys.argv = ['none', '--none-such']\n" + "\n".join(lines)
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.returncode, done.stdout, done.stderr


@every_module
def test_packages_import_only_what_they_may(path):
    ours = roots(path) & {*PACKAGES, "docs", "tests", "deploy"}
    assert ours <= MAY_IMPORT[path.partition("/")[0]]


@every_module
def test_flower_stays_at_the_edge(path):
    if not path.startswith(FLOWER):
        assert "flwr" not in roots(path)


@every_module
def test_nothing_is_ever_unpickled(path):
    assert not roots(path) & UNPICKLES
    loads = [
        node
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
        and node.attr == "load"
        and isinstance(node.value, ast.Name)
        and node.value.id in ("torch", "np", "numpy")
    ]
    assert not loads


@every_module
def test_nothing_runs_when_a_module_is_imported(path):
    """Only definitions, assignments and loops over them stand at the top of a file."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in tree(path).body:
        if isinstance(node, allowed):
            continue
        text = ast.unparse(node)
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guarded = text.startswith(("if __name__ == '__main__':", "if TYPE_CHECKING:"))
        registers = any(call in text for call in (".register(", ".add_typer(", ".command()("))
        assert docstring or guarded or registers, text


def test_importing_every_module_says_nothing_and_sets_nothing_up():
    names = [path[:-3].replace("/", ".").removesuffix(".__init__") for path in MODULES]
    done = python(
        "import importlib, logging",
        f"for name in {names!r}:",
        "    try: importlib.import_module(name)",
        "    except ImportError as error:",
        "        assert error.name == 'triton', (name, error)",  # absent on hosts without a GPU
        "assert not logging.getLogger('dandelion').handlers",
        "assert logging.getLogger('dandelion').level == logging.NOTSET",
    )
    assert done == (0, "", "")


def test_the_client_app_does_not_import_torch():
    done = python(
        "import client.app",
        "heavy = {'torch', 'transformers', 'datasets', 'numba', 'matplotlib', 'server'}",
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)",
    )
    assert done == (0, "", "")


@pytest.mark.parametrize("path", MODULES)
def test_a_module_is_at_most_300_lines(path):
    assert len((ROOT / path).read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", MODULES + TESTS)
def test_the_first_line_of_a_file_is_one_sentence(path):
    line = (ast.get_docstring(tree(path)) or "").partition("\n")[0]
    assert ONE_SENTENCE.fullmatch(line)
    assert not SECOND_SENTENCE.search(line)


@pytest.mark.parametrize("path", MODULES + TESTS)
def test_nothing_is_left_to_do(path):
    marks = ["TO" + "DO", "FIX" + "ME", "X" * 3]
    assert not re.search(rf"\b({'|'.join(marks)})\b", (ROOT / path).read_text())


def test_the_page_of_source_files_is_the_files_on_disk():
    assert PAGE.read_text() == file_map(), "run: make map"


def test_each_module_is_on_the_page_of_source_files_once():
    paths = listed(file_map())
    on_disk = {path for package in PACKAGES for path in Path(ROOT, package).rglob("*.py")}
    assert sorted(paths) == sorted(path.relative_to(ROOT).as_posix() for path in on_disk)
    assert len(set(paths)) == len(paths)
