"""The ClientApp: each client trains and evaluates on its own digits."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dandelion import zeroth_order_handler, zeroth_order_mod
from digits.task import Net, compute_loss, load_data, test

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    """Train the model on local data."""
    trainloader, _ = load_data(context.node_config["partition-id"])
    return zeroth_order_handler(Net, compute_loss, lambda _: trainloader)(msg, context)


@app.evaluate(mods=[zeroth_order_mod(Net)])
def evaluate(msg: Message, context: Context):
    """Evaluate the model on local data."""
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    _, valloader = load_data(context.node_config["partition-id"])
    loss, accuracy = test(model, valloader)
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(valloader.dataset)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
