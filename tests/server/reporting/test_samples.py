"""What a model writes while it trains is seen in the terminal and in the run folder."""

import io

import numpy as np
import pytest
import torch
from federation import config, resumed
from rich.console import Console
from small_chats import chat_model

from dandelion.engines.local import run_local
from dandelion.monitor.progress import RunProgress
from server.reporting.sample_pages import page_of, read_samples, sample_lines
from server.reporting.samples import texts_of
from shared.base.errors import ConfigError
from shared.generation.writer import Writer
from shared.models.load import load_model
from shared.training.oracle import Oracle

DOCS = {"dataset": "python-docs", "max_samples": 24, "block_size": 64, "eval_interval": 2,
        "task": "instruction", "sample_tokens": 4}  # fmt: skip
ESCAPE = {"round": 2, "samples": [{"prompt": "a\nb", "text": "\x1b[31m# x\ny", "expected": ""}]}


def test_held_out_prompts_are_written_after_at_each_evaluation(tmp_path):
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=False, width=200)
    with RunProgress(console) as progress:
        folder = run_local(config(tmp_path, **DOCS, sample_prompts="2"), progress)
    records = read_samples(folder)
    assert [record["round"] for record in records] == [0, 2, 3]
    first, second = records[0]["samples"]
    assert first["prompt"].endswith("Assistant:")
    assert first["expected"]
    assert first["prompt"] != second["prompt"]
    page = (folder / "samples.md").read_text()
    assert page == page_of(records)
    assert page.index("Round 3") < page.index("Round 0")
    for record in records:
        assert f"samples of round {record['round']}" in printed.getvalue()


def test_what_a_model_writes_breaks_no_line_of_the_file(tmp_path, monkeypatch):
    """``str.splitlines`` splits at more than the ends of lines."""
    text = "one\u2028two\u2029three\x85four\x1cfive\r\nsix\vseven"
    monkeypatch.setattr(Writer, "text", lambda writer, tokens: text)
    folder = run_local(config(tmp_path, **DOCS, sample_prompts="hi", num_rounds=2))
    records = read_samples(folder)
    assert [record["round"] for record in records] == [0, 2]
    assert [each["samples"][0]["text"] for each in records] == [text, text]
    (folder / "prompts.txt").write_text("a\u2028b\n\nc\n", encoding="utf-8")
    assert texts_of(str(folder / "prompts.txt")) == ["a\u2028b", "c"]


def test_samples_are_of_the_replicas_parameters(tmp_path):
    """The last ones are what the model that the run leaves writes by its own logits."""
    folder = run_local(config(tmp_path, **DOCS, sample_prompts="hi|you", save_model=True))
    model = load_model(str(folder / "model"), 0)
    tokens = [*model.tokenizer.encode("User: hi\nAssistant:")]
    for _ in range(4):
        tokens.append(int(model.module(torch.tensor([tokens])).logits[0, -1].argmax()))
    written = model.tokenizer.decode(np.array(tokens[-4:]))
    assert read_samples(folder)[-1]["samples"][0]["text"] == written


def test_a_resumed_run_goes_on_with_its_samples(tmp_path):
    short = config(tmp_path, **DOCS, sample_prompts="hi", num_rounds=2)
    folder = run_local(short)
    assert [record["round"] for record in read_samples(folder)] == [0, 2]
    run_local(resumed(short, num_rounds=4))
    assert [record["round"] for record in read_samples(folder)] == [0, 2, 4]


def test_blocks_of_text_are_continued_too(tmp_path):
    folder = run_local(config(tmp_path, sample_prompts="1", sample_tokens=3, num_rounds=1))
    sample = read_samples(folder)[0]["samples"][0]
    assert len(sample["prompt"]) == 8 >= len(sample["expected"]) > 0


def test_a_chat_model_is_prompted_through_its_template(tmp_path):
    name = chat_model(tmp_path / "llama")
    run = config(tmp_path, **{**DOCS, "model": name}, sample_prompts="the film", num_rounds=1)
    folder = run_local(run)
    (sample,) = read_samples(folder)[0]["samples"]
    model = Oracle.of(run).language_model
    assert sample["prompt"] == "the film"
    assert "[SEP]" not in sample["text"]
    assert len(model.tokenizer.encode(sample["text"])) <= 4


def test_texts_cannot_steer_a_terminal_or_a_page():
    lines = sample_lines(ESCAPE)
    assert lines == ["  prompt    a\\nb", "  written   \\x1b[31m# x\\ny"]
    page = page_of([ESCAPE])
    assert "\x1b" not in page
    assert "\n# x" not in page


def test_prompts_are_texts_or_the_lines_of_a_file(tmp_path):
    assert texts_of("one | two|") == ["one", "two"]
    file = tmp_path / "prompts.txt"
    file.write_text("one|two\n\nthree\n")
    assert texts_of(str(file)) == ["one|two", "three"]
    with pytest.raises(ConfigError, match=r"sample-prompts: no file 'none.txt' is here"):
        texts_of("none.txt")
    file.write_text("\n")
    with pytest.raises(ConfigError, match="a prompt at least expected"):
        texts_of(str(file))


def test_tasks_that_write_nothing_have_no_samples():
    with pytest.raises(ConfigError, match="sample-prompts with task 'classification'"):
        config("", task="classification", label_words="a, b", sample_prompts="x")
