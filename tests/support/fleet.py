"""A small federation in this process for tests of the modes."""

import json

from client.app import app
from dandelion.engines.local import LocalGrid, contexts_of
from server.ledger.run_folder import open_run
from server.run import train
from shared.modes.mode import MODES as REGISTRY
from shared.protocol.entry import Entry
from shared.training.validate import configure

SMALL = {
    "dataset": "topics",
    "max-samples": 10,
    "partitioner": "iid",
    "block-size": 16,
    "eval-blocks": 8,
    "eval-interval": 0,
    "num-clients": 3,
    "queries": 2,
    "zo-batch-size": 2,
    "bp-batch-size": 2,
    "bp-interval": 2,
    "num-rounds": 4,
    "learning-rate": 0.001,
    "bp-learning-rate": 0.2,
    "save-model": False,
    "round-timeout": 0.05,
    "wait-timeout": 0.05,
}
MODES = {  # a mode that averages parameters has tests of its own
    **{name: {} for name in REGISTRY.names() if not REGISTRY[name].averages_parameters},
    "instruct auto": {"bp-weight": "auto"},
    "instruct masked": {"instruct-directions": "masked"},
    "instruct reuse": {"guidance": "reuse"},
}


def config(folder, name="run", **changes):
    """A small configuration; keyword arguments are its keys with underscores."""
    keys = {key.replace("_", "-"): value for key, value in changes.items()}
    return configure({**SMALL, "output-dir": str(folder), "run-name": name, **keys})


def of_mode(folder, mode, name="run", **changes):
    """The configuration of a row of MODES."""
    row = {key.replace("-", "_"): value for key, value in MODES[mode].items()}
    return config(folder, name, **{"mode": mode.split()[0], **row, **changes})


def federate(config, unable=(), grid=None):
    """Train; sites whose numbers are in ``unable`` cannot backpropagate."""
    contexts = contexts_of(config)
    for number, context in enumerate(contexts.values()):
        if number in unable:
            context.node_config["can-backpropagate"] = False
    with open_run(config) as run:
        report = train(grid or LocalGrid(app, contexts), run, lambda report, round_: None)
        return Outcome(run, report)


class Outcome:
    """What a run came to."""

    def __init__(self, run, report):
        replica, ledger = run.oracle.replica, run.ledger
        self.folder, self.summary = run.folder, json.loads(json.dumps(report.summary()))
        self.digest, self.flat = replica.digest().hex(), replica.model.flat.clone()
        self.losses = [loss for _, loss in report.evaluations()]
        payloads = ledger.payloads(0, ledger.last_round)
        self.entries = [Entry.decode(payload) for payload in payloads]
        self.forwards = [row[0] for row in ledger.rows("SELECT forwards FROM metrics")]
        self.refusals = ledger.rows("SELECT reason, detail FROM refusals")
        self.traffic = ledger.rows("SELECT round, direction, kind, payload FROM traffic")
