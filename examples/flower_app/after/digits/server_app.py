"""The ServerApp: rounds over half of the clients, then the model is saved."""

import json

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from torch.utils.data import DataLoader, TensorDataset

from dandelion import ZerothOrder
from digits.task import HELD_OUT, Net, draw, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, print the metrics, and save the model."""
    config = context.run_config
    rounds, fraction = config["num-server-rounds"], config["fraction-train"]
    torch.manual_seed(1)
    model = Net()
    strategy = ZerothOrder(
        model=model, queries=32, optimizer="adam", lr=config["lr"], fraction_train=fraction
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        train_config=ConfigRecord({"lr": config["lr"]}),
        num_rounds=rounds,
        evaluate_fn=global_evaluate,
    )
    accuracies = {r: m["accuracy"] for r, m in result.evaluate_metrics_serverapp.items()}
    print("accuracy by round:", json.dumps(accuracies))
    torch.save(result.arrays.to_torch_state_dict(), "final_model.pt")


def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Evaluate the global model on held-out data."""
    model = Net()
    model.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy = test(model, DataLoader(TensorDataset(*draw(HELD_OUT, 0)), batch_size=256))
    return MetricRecord({"accuracy": accuracy, "loss": loss})
