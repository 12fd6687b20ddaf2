"""What samples of a run look like: lines for a terminal, and a page in Markdown."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.base.text import LINES, escape_text

SAMPLES_JSONL, SAMPLES_MD = "samples.jsonl", "samples.md"


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The samples of a run's evaluations, oldest first; none if it has no prompts."""
    file = folder / SAMPLES_JSONL
    if not file.is_file():
        return []
    with file.open(encoding="utf-8") as lines:  # a model may write what splitlines() splits at
        return [json.loads(line) for line in lines]


def sample_lines(record: Mapping[str, Any]) -> list[str]:
    """The samples of one evaluation as lines that a terminal can print."""
    return [
        line
        for sample in record["samples"]
        for line in (
            f"  prompt    {escape_text(sample['prompt'])}",
            f"  written   {escape_text(sample['text'])}",
            *([f"  expected  {escape_text(sample['expected'])}"] if sample["expected"] else []),
        )
    ]


def page_of(records: Sequence[Mapping[str, Any]]) -> str:
    """All samples as Markdown, newest first; texts are blocks of code, so that none is markup."""
    parts = ["# Samples\n"]
    for record in reversed(records):
        parts.append(f"## Round {record['round']}\n")
        for number, sample in enumerate(record["samples"], 1):
            for title in ("prompt", "text", "expected"):
                if sample[title] or title == "text":
                    heading = {"text": "written"}.get(title, title)
                    parts.append(f"{number}. {heading}\n\n{_block(sample[title])}")
    return "\n".join(parts)


def _block(text: str) -> str:
    """A block of code: every line indented, nothing in it that a terminal would obey."""
    lines = escape_text(text, LINES).split("\n")
    return "".join(f"       {line}\n" for line in lines)
