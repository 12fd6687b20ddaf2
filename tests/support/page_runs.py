"""The blocks of a page as a reader would type them, and why some are not typed by a test."""

import re
import shlex
from typing import NamedTuple

from pages import text_of

# A comment in a page's source, right before a block, says why no test runs it:
#     <!-- not run: REASON -->                    the whole block
#     <!-- not run, TEXT: REASON -->              only its lines with TEXT
#     <!-- run by tests/…/test_….py -->           a test of its own does
BLOCK = re.compile(r"((?:^<!--[^\n]*-->\n\s*)*)^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
NOT_RUN = re.compile(r"<!-- not run(?:, (.*?))?: (.+?) -->")
RUN_BY = re.compile(r"<!-- run by (\S+) -->")
COMMENT = re.compile(r"\s+#\s.*$")
CAPS = {"num-rounds": 50, "queries": 2, "num-clients": 20, "trials": 2}
OWN_OPTIONS = {"--queries": "queries", "--rounds": "num-rounds", "--clients": "num-clients"}
SMALL = {
    "max-samples": "40", "block-size": "16", "eval-blocks": "4", "zo-batch-size": "1",
    "bp-batch-size": "1", "queries": "2", "num-rounds": "3", "eval-interval": "50",
}  # fmt: skip
OF_PREFLIGHT = {k: v for k, v in SMALL.items() if k not in ("queries", "block-size")}
TRAINING = ("run", "compare", "sweep", "preflight")


class Block(NamedTuple):
    """A fenced block, and what the comments before it say."""

    kind: str
    text: str
    comments: str

    @property
    def is_excused(self):
        """Whether a comment says why the whole block is not run here."""
        whole = [reason for text, reason in NOT_RUN.findall(self.comments) if not text]
        return bool(whole or RUN_BY.findall(self.comments))

    @property
    def lines(self):
        """The command lines that are to be run: whole ones, without comments."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        excused = [text for text, _ in NOT_RUN.findall(self.comments) if text]
        lines = [COMMENT.sub("", line).strip() for line in joined.splitlines()]
        return [line for line in lines if line and not any(text in line for text in excused)]


def blocks_of(page):
    """The fenced blocks of a page, in order."""
    return [Block(kind, text, notes) for notes, kind, text in BLOCK.findall(text_of(page))]


def shrink(line):
    """The words of a ``dandelion`` command after its name, with sizes that take a second.

    Numbers of rounds and queries get a ceiling; what the command leaves open is set small.
    """
    words = [word for word in shlex.split(line)[1:] if word not in ("--follow", "-f")]
    words = [_shrink_word(before, word) for before, word in zip(["", *words], words, strict=False)]
    if words[0] not in TRAINING or "--resume" in words:
        return words
    given = {word.partition("=")[0].rpartition(":")[2] for word in words}
    small = SMALL if words[0] != "preflight" else OF_PREFLIGHT
    given |= {key for option, key in OWN_OPTIONS.items() if option in words}
    for key, value in small.items():
        if key not in given:
            words += ["--set", f"{key}={value}"]
    return words + (["--rates", "1"] if words[0] == "compare" else [])


def _shrink_word(before, word):
    key, equals, value = word.partition("=")
    if before == "--grid":
        return f"{key}={','.join(value.split(',')[: 2 if key == 'mode' else 1])}"
    if before == "--methods":
        return ",".join(word.split(",")[:2])
    if before in ("--seconds", "--forwards", "--trials"):
        return {"--seconds": "0.3", "--forwards": "8", "--trials": "1"}[before]
    if (key, value) == ("model", "20M"):  # of the same kind, in a hundredth of the time
        return "model=byte-gpt"
    key = OWN_OPTIONS.get(before, key)
    if key in CAPS and (equals or before in OWN_OPTIONS):
        least = min(int(value or word), CAPS[key])
        return f"{key}={least}" if equals else str(least)
    return word
