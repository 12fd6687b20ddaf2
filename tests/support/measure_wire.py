"""Measures bytes on the wire and seconds per round.

``python tests/support/measure_wire.py FOLDER [ROW…]``.

One node behind a counting proxy, TLS, a registered key. Prints the table of deploy/README.md: means
over the rounds after the first, polls and heartbeats of the same seconds included.
"""

import sys
import time
from pathlib import Path

from machines import Federation, last_round, rows
from processes import until

from shared.models.load import load_model
from shared.models.model import LanguageModel
from shared.models.tokenizers import ByteTokenizer

SHARED = {
    "num-clients": 1, "min-clients": 1, "dataset": "topics", "partitioner": "iid",
    "max-samples": 6, "block-size": 16, "zo-batch-size": 1, "eval-blocks": 1, "eval-interval": 1000,
    "snapshot-interval": 0, "save-model": False, "round-timeout": 900,
    "learning-rate": 1e-5,  # no rewind between the rounds that are measured
}  # fmt: skip
LARGE = {"model": "20M"}  # with a tokenizer of bytes: GPT-2's own is on a hub
RUNS: dict[str, dict[str, object]] = {
    "zo, q = 64": {**LARGE, "queries": 64, "num-rounds": 12},
    "zo, q = 64, K = 16": {**LARGE, "queries": 64, "local-steps": 16},
    "fedavg": {**LARGE, "mode": "fedavg", "bp-batch-size": 1},
    "zo, q = 1": {"queries": 1, "num-rounds": 16},
    "zo, q = 1, staleness = 1": {"queries": 1, "staleness": 1, "num-rounds": 16},
}
ROUNDS = 4
TABLE_HEADER = """
| run | parameters | payload up | payload down | messages up | messages down | wire up | wire down | s per round | of it measuring |
|---|---|---|---|---|---|---|---|---|---|"""  # noqa: E501


def measure(federation: Federation, number: int, title: str) -> str:
    """One row."""
    name, settings = f"run{number}", {**SHARED, "num-rounds": ROUNDS, **RUNS[title]}
    rounds = int(str(settings["num-rounds"]))
    settings |= {"model": str(federation.folder / "model")} if "model" in settings else {}
    folder, command = federation.runs / name, federation.run(name, settings)
    until(lambda: last_round(folder) >= 1, "round 1", 900)
    first, start = federation.proxies["n"].counted(), time.monotonic()
    until(lambda: last_round(folder) >= rounds, "the last round", 900)
    last, seconds = federation.proxies["n"].counted(), time.monotonic() - start
    command.wait(300)
    counted = rows(folder, COUNTED)[0]
    wire = [(b - a) / (rounds - 1) for a, b in zip(first, last, strict=True)]
    spent = rows(folder, "SELECT avg(seconds) FROM contributions WHERE round > 1")[0][0]
    texts = [f"{value:,.0f}" for value in (*counted, *wire)]
    size = "17.7 M" if "model" in RUNS[title] else "0.12 M"
    times = [f"{seconds / (rounds - 1):.1f}", f"{spent:.1f}"]
    return f"| {title} | {size} | {' | '.join([*texts, *times])} |"


COUNTED = """
SELECT avg(payload) FILTER (WHERE direction = 'up'), avg(payload) FILTER (WHERE direction = 'down'),
       avg(message) FILTER (WHERE direction = 'up'), avg(message) FILTER (WHERE direction = 'down')
FROM traffic WHERE kind != 'control' AND round > 1"""


def main() -> None:
    """Print the table."""
    federation = Federation(Path(sys.argv[1]))
    federation.folder.mkdir(parents=True)
    LanguageModel("20M", load_model("20M", 1).module, ByteTokenizer()).save(
        federation.folder / "model"
    )
    try:
        federation.up()
        federation.join("n", "--set", "partition-id=0")
        print(TABLE_HEADER, flush=True)
        for number, title in enumerate(sys.argv[2:] or RUNS):
            print(measure(federation, number, title), flush=True)
    finally:
        federation.end()


if __name__ == "__main__":
    main()
