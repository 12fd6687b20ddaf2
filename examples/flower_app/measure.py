"""Runs both apps in Flower's simulation and prints accuracy and bytes of each.

    python examples/flower_app/measure.py [ROUNDS]

Bytes are those of all messages as Flower serialises them, counted where its grid pushes and pulls.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NODES = 10
SETTINGS = {"before": {"lr": 0.01}, "after": {"lr": 0.01}}


def measure(name: str, rounds: int) -> dict:
    """Run one app in a process of its own."""
    words = [sys.executable, "-W", "ignore", str(HERE / "measure.py"), "--app", name, str(rounds)]
    with tempfile.TemporaryDirectory() as folder:  # for the model that the app saves
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(lines[-1])


def run(name: str, rounds: int) -> dict:
    """Run one app in this process; return its accuracies by round and its bytes."""
    sys.path.insert(0, str(HERE / name))
    from digits import client_app, server_app
    from flwr.common.serde import message_to_proto
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation
    from flwr.superlink.grid.inmemory_grid import InMemoryGrid

    counted = {"up": 0, "down": 0}
    accuracies: dict[int, float] = {}
    push, pull = InMemoryGrid.push_messages, InMemoryGrid.pull_messages

    def push_and_count(grid, messages):
        listed = list(messages)
        ids = push(grid, listed)
        counted["down"] += sum(message_to_proto(each).ByteSize() for each in listed)
        return ids

    def pull_and_count(grid, ids):
        listed = list(pull(grid, ids))
        counted["up"] += sum(message_to_proto(each).ByteSize() for each in listed)
        return listed

    InMemoryGrid.push_messages, InMemoryGrid.pull_messages = push_and_count, pull_and_count
    evaluate = server_app.global_evaluate

    def evaluate_and_note(server_round, arrays):
        metrics = evaluate(server_round, arrays)
        accuracies[server_round] = metrics["accuracy"]
        return metrics

    server_app.global_evaluate = evaluate_and_note
    app = ServerApp()

    @app.main()
    def main(grid, context):
        context.run_config = {
            "num-server-rounds": rounds, "fraction-train": 0.5, **SETTINGS[name],
        }  # fmt: skip
        server_app.app(grid, context)

    run_simulation(app, client_app.app, NODES, backend_config={"client_resources": {"num_cpus": 1}})
    return {"accuracy": accuracies, **counted}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--app"]:
        print(json.dumps(run(sys.argv[2], int(sys.argv[3]))), flush=True)
    else:
        for each in SETTINGS:
            result = measure(each, int(sys.argv[1]) if sys.argv[1:] else 3)
            print(each, json.dumps(result))
