"""Questions about Python's standard library, answered by the first sentences of its docstrings."""

import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

from shared.base.errors import DataError
from shared.data.conversations import exchange, plain_text, to_json
from shared.data.documents import DATASETS, Documents, Source

# Modules that do nothing when they are imported, on every system, and whose names are documented.
MODULES = (
    *("argparse", "ast", "base64", "bisect", "calendar", "codecs", "collections", "colorsys"),
    *("configparser", "contextlib", "copy", "csv", "datetime", "decimal", "difflib", "dis"),
    *("email.utils", "enum", "fileinput", "filecmp", "fnmatch", "fractions", "functools"),
    *("getopt", "gettext", "glob", "gzip", "hashlib", "heapq", "hmac", "html", "inspect", "io"),
    *("ipaddress", "itertools", "json", "keyword", "linecache", "locale", "logging", "math"),
    *("mimetypes", "operator", "os.path", "pathlib", "pickle", "pickletools", "pkgutil"),
    *("platform", "plistlib", "pprint", "queue", "quopri", "random", "reprlib", "sched"),
    *("secrets", "selectors", "shelve", "shlex", "shutil", "signal", "site", "socket", "stat"),
    *("statistics", "string", "struct", "subprocess", "sysconfig", "tarfile", "tempfile"),
    *("textwrap", "threading", "time", "timeit", "token", "tokenize", "trace", "traceback"),
    *("types", "typing", "unicodedata", "unittest.mock", "urllib.parse", "uuid", "warnings"),
    *("wave", "weakref", "zipfile", "zlib"),
)
SENTENCE = re.compile(r"(.+?[.!?])(?:\s|$)", re.DOTALL)
SIGNATURE = re.compile(r"^\w[\w.]*\(.*\)\s*(->\s*.+)?$")  # a docstring's first line may be one
SHORTEST, LONGEST = 12, 240  # characters of an answer


def python_docs(max_samples: int, by: str = "module") -> Documents:
    """One question for each documented name: what does it do? Its group is its module.

    They need no network and no sources, and differ between versions of Python.

    Raises:
        DataError: this Python was built without docstrings.
    """
    del by
    pairs = [(module, *pair) for module in MODULES for pair in _questions(module)]
    if not pairs:
        raise DataError(
            "this Python has no docstrings (python -OO, or PYTHONOPTIMIZE=2, strips them): run it "
            "without, or choose another dataset"
        )
    turns = [to_json(exchange(question, answer)) for _, question, answer in pairs]
    texts = [plain_text(text) for text in turns]
    return Documents(texts, [pair[0] for pair in pairs], conversations=turns).thin(max_samples)


def _questions(name: str) -> Iterator[tuple[str, str]]:
    """Questions and answers about a module's public names, in the order of the alphabet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = importlib.import_module(name)
        except ImportError:  # some systems lack one
            return
        for attribute, value in sorted(_members(module).items()):
            answer = _first_sentence(value)
            if answer:
                yield f"What does {name}.{attribute} do?", answer


def _members(module: ModuleType) -> dict[str, object]:
    """The public functions and classes that a module itself defines or exports by ``__all__``."""
    exported = getattr(module, "__all__", None)
    names = exported if exported is not None else dir(module)
    members = {name: getattr(module, name, None) for name in names if not name.startswith("_")}
    return {
        name: value
        for name, value in members.items()
        if (inspect.isroutine(value) or inspect.isclass(value))
        and (exported is not None or getattr(value, "__module__", "") == module.__name__)
    }


def _first_sentence(value: object) -> str:
    """The first sentence of a docstring on one line; empty if it has none of a fair length."""
    own = getattr(value, "__doc__", None)  # getdoc would give the docstring of a base class
    text = inspect.cleandoc(own) if isinstance(own, str) else ""
    paragraphs = [part for part in text.split("\n\n") if not SIGNATURE.match(part.strip())]
    match = SENTENCE.match(paragraphs[0].strip()) if paragraphs else None
    sentence = " ".join(match[1].split()) if match else ""
    return sentence if SHORTEST <= len(sentence) <= LONGEST else ""


DATASETS.register("python-docs")(
    Source(
        python_docs, "embedded",
        f"questions on Python {sys.version_info.major}.{sys.version_info.minor}'s library, "
        "answered by its docstrings", ("module",), "0.2 MB", "PSF",
    )
)  # fmt: skip
