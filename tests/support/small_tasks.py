"""A small run of every task: a random chat model, and rows of a table that the task reads."""

import json

import small_models
from small_chats import chat_model

GROUPS = 4
ROWS = 32
OF_TASK = {  # settings that a task needs, in the words of the chat model's tokenizer
    "classification": {
        "label-words": "bad, good",
        "prompt-form": "chat",
        "prompt": "user: the {text} | assistant: It was",
    },
    "multiple-choice": {"prompt-form": "chat", "choice-prompt": "user: {text}"},
    "generation": {"max-new-tokens": 4},
}


def row_of(task, number):
    """One row of a table for a task; its words say what is right."""
    kind = ("bad", "good")[number % 2]
    text = f"{kind} film {'and plot ' * (number % 3)}"
    parts = {
        "classification": {"text": text, "label": kind},
        "multiple-choice": {"question": text, "choices": ["it was bad", "good"], "answer": kind
                            if kind == "good" else "it was bad"},
        "regression": {"text": text, "score": number % 2 + 0.5},
        "language-modelling": {"text": f"the {text} " * 8},
    }  # fmt: skip
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": f"it was {kind}"}]
    return {**parts.get(task, {"messages": turns}), "group": f"g{number % GROUPS}"}


def task_settings(task, folder):
    """Settings of a small run of a task; its model and its JSONL file are made in a folder."""
    data = folder / task
    data.mkdir()
    lines = [json.dumps(row_of(task, number)) for number in range(ROWS)]
    (data / "rows.jsonl").write_text("\n".join(lines) + "\n")
    if not (folder / "chat").exists():
        chat_model(folder / "chat")
    return {
        "task": task, "dataset": str(data), "model": str(folder / "chat"), "max-samples": 0,
        "partitioner": "natural", "block-size": 24, **OF_TASK.get(task, {}),
    }  # fmt: skip


def kept_settings(scope, folder):
    """Settings of a run of a causal model on kept features, or on activations at a cut.

    Some texts are at several sites. Its widths are multiples of 16, so that a text has the same
    bits in a batch of any size.
    """
    data = folder / "texts"
    data.mkdir(parents=True)
    rows = [
        {"text": f"the film was {label}{' and the plot' * (number // 2 % 5)}", "label": label}
        for number, label in enumerate(("bad", "good") * 30)
    ]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": "classification", "label-words": "bad, good", "dataset": str(data),
        "model": small_models.causal(folder / "model", inner=32), "scope": scope,
        "partitioner": "iid", "max-samples": 0, "step": "auto", "threads": 1,
        "keep-disk": 0,
    }  # fmt: skip
