"""The documentation site builds strictly, and reads without a network."""

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from pages import PAGES, ROOT

pytestmark = pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed")
LOADED = re.compile(r"""<(?:script|img|iframe|link(?![^>]+rel="?canonical))[^>]*?\s
                        (?:src|href)=["']?(?:https?:)?//[^"'\s>]+""", re.VERBOSE)  # fmt: skip
STYLE = re.compile(r"(?:url\(|@import\s+)[\"']?(?:https?:)?//[^\"')]+")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "-q", "-d"]
    done = subprocess.run([*words, folder], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there_and_nothing_is_loaded_from_elsewhere(site):
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    for page in PAGES:
        if page.startswith("docs/"):
            name = page.removeprefix("docs/").replace("README.md", "index.md")
            assert name.removesuffix(".md") + ".html" in pages, page
    for path in site.rglob("*.html"):
        assert not LOADED.findall(path.read_text()), path
    for path in site.rglob("*.css"):
        assert not STYLE.findall(path.read_text()), path
    assert (site / "search" / "search_index.json").stat().st_size > 10_000


def test_the_patterns_find_what_is_loaded_from_elsewhere():
    assert LOADED.search('<script src="https://unpkg.com/x.js">')
    assert LOADED.search('<link rel="stylesheet" href="https://fonts.googleapis.com/css">')
    assert not LOADED.search('<a href="https://flower.ai">')
    assert STYLE.search("src: url(https://fonts.gstatic.com/x.woff2)")
