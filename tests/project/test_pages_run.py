"""What README, tutorials and how-to guides tell a reader to type is typed, and works."""

import re
import sys

import pytest
from page_runs import NOT_RUN, RUN_BY, blocks_of, shrink
from pages import PAGES, ROOT

from dandelion.cli.app import entry

FOLDERS = ("docs/tutorials/", "docs/how-to/")
TYPED = ["README.md", *(page for page in PAGES if page.startswith(FOLDERS))]
QUICK = ("README.md", "docs/tutorials/first-run.md")
STATUSES = {"preflight": (0, 1)}  # 1: other settings are suggested
RUN = "dandelion run --name NAME --set num-rounds=50"
BEFORE = {  # what a page takes to be there: the run of a reader, by its placeholder
    "docs/how-to/resume-verify-replay.md": RUN,
    "docs/how-to/compare-methods.md": RUN,
    "docs/how-to/sweep.md": "dandelion sweep --grid mode=zo --grid queries=1 --name NAME",
}
every_page = pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[] if p in QUICK else pytest.mark.slow) for p in TYPED]
)


@pytest.fixture
def type_in(tmp_path, monkeypatch, capsys):
    """Type a ``dandelion`` command, made small, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))

    def call(line):
        words = shrink(line)
        monkeypatch.setattr(sys, "argv", ["dandelion", *words])
        with pytest.raises(SystemExit) as caught:
            entry()
        printed = "".join(capsys.readouterr())
        assert (caught.value.code or 0) in STATUSES.get(words[0], (0,)), (line, printed)
        return printed

    return call


@pytest.mark.parametrize("page", TYPED)
def test_every_block_is_run_or_says_why_not(page):
    for block in blocks_of(page):
        if not block.is_excused:
            strange = [line for line in block.lines if not line.startswith("dandelion ")]
            assert not strange, f"a block of {page} needs a comment 'not run: REASON'"
        for file in RUN_BY.findall(block.comments):
            assert page.rpartition("/")[2] in (ROOT / file).read_text(), (page, file)
        for text, reason in NOT_RUN.findall(block.comments):
            assert text in block.text
            assert len(reason.split()) > 1, f"{page}: a reason of some words expected: {reason}"


def test_a_good_part_of_the_commands_is_run():
    blocks = [block for page in TYPED for block in blocks_of(page)]
    typed = [line for block in blocks if not block.is_excused for line in block.lines]
    commands = [
        line for block in blocks for line in block.text.splitlines() if "dandelion " in line
    ]
    assert len(typed) > len(commands) / 3


@every_page
def test_the_commands_of_a_page_work_in_their_order(page, type_in, tmp_path):
    lines = [line for block in blocks_of(page) if not block.is_excused for line in block.lines]
    if page in BEFORE and lines:
        type_in(BEFORE[page])
    for line in lines:
        type_in(line)
    named = {name for line in lines for name in re.findall(r"--out (\S+)", line)}
    assert all((tmp_path / name).exists() for name in named)
