"""The documentation site builds strictly, and reads without a network."""

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from browser import needs_browser, open_page
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


def test_the_search_needs_no_server(site):
    """A page from disk may load neither JSON nor a Worker: there are scripts in their place."""
    index = (site / "search" / "search_index.js").read_text()
    assert index.startswith("var __index = {")
    for path in site.rglob("*.html"):
        if path.name != "404.html":
            (worker,) = re.findall(r'src="([^"]*iframe-worker\.js)"', path.read_text())
            assert (path.parent / worker).is_file(), path


@pytest.mark.slow
@needs_browser
def test_a_browser_searches_in_a_page_that_was_opened_from_disk(site, tmp_path):
    address = f"{(site / 'how-to' / 'sweep.html').as_uri()}?q=ledger"
    opened = open_page(address, tmp_path, "--virtual-time-budget=15000", "--dump-dom")
    assert re.search(r"[1-9]\d* matching documents", opened.output), opened.output[-2000:]
    assert "ledger-layout.html" in opened.output


def test_the_patterns_find_what_is_loaded_from_elsewhere():
    assert LOADED.search('<script src="https://unpkg.com/x.js">')
    assert LOADED.search('<link rel="stylesheet" href="https://fonts.googleapis.com/css">')
    assert not LOADED.search('<a href="https://flower.ai">')
    assert STYLE.search("src: url(https://fonts.gstatic.com/x.woff2)")
