"""The code keeps to its plan: allowed imports, sizes of files and folders, and words."""

import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from docs.file_map import PAGE, file_map

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("server", "client", "shared", "dandelion")
PATHS = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = [path.relative_to(ROOT).as_posix() for path in PATHS]
TESTS = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "tests").rglob("*.py"))]
FILES = [path for path in MODULES if not path.endswith("__init__.py")]
FOLDERS = sorted({path.rpartition("/")[0] for path in MODULES})
DOTTED_FOLDERS = [name.replace("/", ".") for name in FOLDERS]
LONGEST, SHORT, SHORT_SHARE, MOST_MODULES = 300, 60, 0.15, 12
FLOWER = ("server/", "dandelion/", "client/app.py", "client/handlers/", "shared/apps/records.py",
          "shared/protocol/flower_records.py", "shared/aggregation/flower.py")  # fmt: skip
UNPICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
ONE_SENTENCE = re.compile(r"[A-Z0-9`].*[.]")
SECOND_SENTENCE = re.compile(r"[a-z)][.] [A-Z]")
NO_NOUNS = {"found", "told", "held", "lot", "asked"}  # say what it is
IRREGULAR = {"built", "chosen", "cut", "dealt", "drawn", "found", "frozen", "given", "gone", "held",
             "hidden", "kept", "known", "left", "lost", "made", "met", "said", "seen", "sent",
             "shown", "sought", "split", "told", "taken", "thrown", "written"}  # fmt: skip
VERBS = {"cut", "split", "embed", "feed", "need", "seed", "speed", "shed"}  # look like participles
TABLE_ROW = re.compile(r"\| `([\w.]+)` \| (.*) \|")


def over(paths):
    """Make one test of a check of one file, which names every file at fault.

    A test per file would cost more than what it looks at.
    """

    def make_test(check):
        def test():
            faults = []
            for path in paths:
                try:
                    check(path)
                except Exception as error:
                    faults.append(f"{path}: {type(error).__name__}: {error}")
            assert not faults, "\n".join(faults)

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return make_test


every_module, every_file = over(MODULES), over(MODULES + TESTS)


@cache
def text_of(path):
    return (ROOT / path).read_text()


@cache
def tree(path):
    return ast.parse(text_of(path))


@cache
def nodes_of(path):
    """All nodes of a file: some ten tests look through them."""
    return tuple(ast.walk(tree(path)))


def dotted(path):
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


NAMES = {dotted(path): path for path in MODULES}


def imports(path):
    """Dotted names that are imported, wherever in the file; ``from a import b`` gives ``a.b``."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path):
    """Our modules that a module imports."""
    for name in imports(path):
        module = name if name in NAMES else name.rpartition(".")[0]
        if module in NAMES and NAMES[module] != path:
            yield module


def folder(module):
    """The folder of a module; a package is in itself."""
    path = NAMES[module]
    return path.rpartition("/")[0].replace("/", ".")


@cache
def allowed():
    """The table of ARCHITECTURE.md: each folder, and those that it may import."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    section = text.split("## Allowed imports")[1].split("\n## ")[0]
    every_shared = " ".join(f"`{name}`" for name in DOTTED_FOLDERS if name.startswith("shared."))
    return {
        row[1]: set(re.findall(r"`([\w.]+)`", row[2].replace("`shared.*`", every_shared)))
        for row in TABLE_ROW.finditer(section)
    }


def roots(path):
    return {name.partition(".")[0] for name in imports(path)}


def functions(path):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in nodes_of(path) if isinstance(node, kinds)]


def python(*lines):
    """Run code in a fresh process that warns of nothing and has arguments of no one's."""
    code = "import sys; sys.argv = ['none', '--none-such']\n" + "\n".join(lines)
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.returncode, done.stdout, done.stderr


def test_every_file_at_fault_is_named_with_its_fault():
    @over(["a.py", "b.py", "c.py"])
    def check(path):
        assert path == "b.py", f"{path} is not b"

    with pytest.raises(AssertionError) as caught:
        check()
    text = str(caught.value)
    assert "a.py: AssertionError: a.py is not b" in text
    assert "c.py: AssertionError: c.py is not b" in text
    assert "b.py: " not in text


# --- who imports whom


def test_the_table_names_every_folder_and_no_other():
    assert sorted(allowed()) == sorted(DOTTED_FOLDERS)


def test_the_table_names_no_folder_that_is_not_there():
    assert {each for row in allowed().values() for each in row} <= set(allowed())


@every_module
def test_a_folder_imports_only_what_the_table_allows(path):
    own = path.rpartition("/")[0].replace("/", ".")
    assert {folder(module) for module in ours(path)} - {own} <= allowed()[own]


def test_nothing_outside_the_packages_is_imported():
    assert not {root for path in MODULES for root in roots(path)} & {"docs", "tests", "deploy"}


def acyclic(graph):
    try:
        return bool(tuple(TopologicalSorter(graph).static_order()))
    except CycleError as error:
        return error.args[1]


def test_the_table_has_no_circle():
    assert acyclic(allowed()) is True


def test_files_import_each_other_in_no_circle():
    assert acyclic({dotted(path): set(ours(path)) for path in MODULES}) is True


def test_a_circle_would_be_noticed():
    assert acyclic({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != True  # noqa: E712  (a path of names)


@every_module
def test_flower_stays_at_the_edge(path):
    if not path.startswith(FLOWER):
        assert "flwr" not in roots(path)


@every_module
def test_nothing_is_ever_unpickled(path):
    assert not roots(path) & UNPICKLES
    loads = [
        node
        for node in nodes_of(path)
        if isinstance(node, ast.Attribute)
        and node.attr == "load"
        and isinstance(node.value, ast.Name)
        and node.value.id in ("torch", "np", "numpy")
    ]
    assert not loads


# --- what happens at import


@every_module
def test_nothing_runs_when_a_module_is_imported(path):
    """Only definitions, assignments and loops over them stand at the top of a file."""
    definitions = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign)
    for node in tree(path).body:
        if isinstance(node, (*definitions, ast.AnnAssign)):
            continue
        text = ast.unparse(node)
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guarded = text.startswith(("if __name__ == '__main__':", "if TYPE_CHECKING:"))
        registers = any(
            call in text for call in (".register(", "register_size(", ".add_typer(", ".command(")
        )
        assert docstring or guarded or registers, text


def test_importing_every_module_says_nothing_and_sets_nothing_up():
    done = python(
        "import importlib, logging",
        f"for name in {sorted(NAMES)!r}:",
        "    try: importlib.import_module(name)",
        "    except ImportError as error:",
        "        assert error.name == 'triton', (name, error)",  # absent on hosts without a GPU
        "assert not logging.getLogger('dandelion').handlers",
        "assert logging.getLogger('dandelion').level == logging.NOTSET",
    )
    assert done == (0, "", "")


def test_the_command_line_imports_neither_torch_nor_flower():
    done = python(
        "import dandelion.cli.app",
        "heavy = {'torch', 'transformers', 'numba', 'matplotlib', 'pandas', 'flwr'}",
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)",
    )
    assert done == (0, "", "")


def test_the_client_app_does_not_import_torch():
    done = python(
        "import client.app",
        "heavy = {'torch', 'transformers', 'datasets', 'numba', 'matplotlib', 'server'}",
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)",
    )
    assert done == (0, "", "")


# --- sizes


@every_module
def test_a_module_is_at_most_300_lines(path):
    assert len(text_of(path).splitlines()) <= LONGEST


def test_few_files_are_so_short_that_they_are_part_of_an_idea():
    short = [path for path in FILES if len(text_of(path).splitlines()) < SHORT]
    assert len(short) <= SHORT_SHARE * len(FILES), short


def test_no_folder_is_a_hall():
    counts = Counter(path.rpartition("/")[0] for path in FILES)
    assert max(counts.values()) <= MOST_MODULES, counts.most_common(3)


@over([path for path in TESTS if Path(path).name.startswith("test_")])
def test_tests_mirror_the_folders(path):
    """A test stands in the folder of what it tests, or in tests/project."""
    room = path.removeprefix("tests/").rpartition("/")[0]
    assert room == "project" or room in FOLDERS


# --- words


@every_file
def test_the_first_line_of_a_file_is_one_sentence(path):
    line = (ast.get_docstring(tree(path)) or "").partition("\n")[0]
    assert ONE_SENTENCE.fullmatch(line)
    assert not SECOND_SENTENCE.search(line)


@every_file
def test_nothing_is_left_to_do(path):
    marks = ["TO" + "DO", "FIX" + "ME", "X" * 3]
    assert not re.search(rf"\b({'|'.join(marks)})\b", text_of(path))


def stored(path):
    """Names that are assigned or taken as arguments, and attributes that are assigned."""
    for node in nodes_of(path):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.arg


@every_module
def test_names_say_what_a_thing_is(path):
    assert not {name.strip("_") for name in stored(path)} & NO_NOUNS


def participle(name):
    first = name.strip("_").partition("_")[0]
    return first not in VERBS and (first in IRREGULAR or first.endswith("ed"))


def is_property(node):
    marks = {ast.unparse(each).rpartition(".")[2] for each in node.decorator_list}
    return bool(marks & {"property", "cached_property", "setter"})


@every_module
def test_functions_are_verbs(path):
    nodes = [node for node in functions(path) if not is_property(node)]
    assert [node.name for node in nodes if participle(node.name)] == []


def test_a_participle_would_be_noticed():
    names = ("judged", "_kept", "measured_together", "made_whole", "split_examples", "add_to_")
    assert [participle(name) for name in names] == [True, True, True, True, False, False]


def test_no_two_classes_share_a_name():
    places = defaultdict(list)
    for path in MODULES:
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(path)
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


# --- the generated page


def test_the_page_of_source_files_is_the_files_on_disk():
    assert (ROOT / PAGE).read_text() == file_map(), "run: make map"


def test_no_module_is_ignored_by_git():
    """Flower leaves what git ignores out of the bundle that sites run."""
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", *MODULES],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.stdout.split() == []
