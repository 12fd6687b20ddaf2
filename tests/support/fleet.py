"""A small federation in this process for tests of the modes."""

import json

from small_config import small_config

from client.app import app
from dandelion.engines.local import LocalGrid, contexts_of
from server.ledger.run_folder import open_run
from server.run import train
from shared.modes.mode import MODES, plan_of
from shared.protocol.entry import Entry

SMALL = {
    "max-samples": 10,
    "eval-interval": 0,
    "bp-batch-size": 2,
    "bp-interval": 2,
    "num-rounds": 4,
    "learning-rate": 0.001,
    "bp-learning-rate": 0.2,
}
VARIANTS = {
    "instruct auto": {"bp-weight": "auto"},
    "instruct masked": {"instruct-directions": "masked"},
    "instruct reuse": {"guidance": "reuse"},
    "zo exact": {"estimator": "exact"},
    "zo epochs": {"batch-order": "epochs"},
    "calibrate epochs": {"batch-order": "epochs"},
}


ALL_MODES = {**{name: {} for name in MODES.names()}, **VARIANTS}  # every mode gets their tests


def config(folder, name="run", **changes):
    """A small configuration with rates for every mode; keyword arguments change settings."""
    return small_config(folder, name, **{**as_keywords(SMALL), **changes})


def as_keywords(settings):
    """Settings as keyword arguments: hyphens become underscores."""
    return {key.replace("-", "_"): value for key, value in settings.items()}


def of_mode(folder, mode, name="run", **changes):
    """The configuration of a mode or a variant of one."""
    variant = as_keywords(ALL_MODES[mode])
    return config(folder, name, **{"mode": mode.split()[0], **variant, **changes})


def tolerates_sites_without_gradients(mode):
    """Whether a mode has work for sites that cannot backpropagate: it never trains locally."""
    c = of_mode("none", mode)
    return not any(plan_of(c, round_).train for round_ in range(1, c.training.rounds + 1))


def federate(config, unable=(), grid=None):
    """Train; sites whose numbers are in ``unable`` cannot backpropagate."""
    contexts = contexts_of(config)
    for number, context in enumerate(contexts.values()):
        if number in unable:
            context.node_config["can-backpropagate"] = False
    with open_run(config) as run:
        report = train(grid or LocalGrid(app, contexts), run, lambda report, round_: None)
        return ModeResult(run, report)


class ModeResult:
    """The end of a run: digest, parameters, losses, entries, costs, refusals and traffic."""

    def __init__(self, run, report):
        replica, ledger = run.oracle.replica, run.ledger
        self.folder, self.summary = run.folder, json.loads(json.dumps(report.summary()))
        self.digest, self.flat = replica.digest().hex(), replica.model.flat.clone()
        self.losses = [loss for _, loss in report.ledger.evaluations()]
        payloads = ledger.payloads(0, ledger.last_round)
        self.entries = [Entry.decode(payload) for payload in payloads]
        self.forwards = [metrics.forwards for metrics in ledger.metrics()]
        self.refusals = [(r.reason, r.detail) for r in ledger.refusals()]
        self.traffic = [(t.round, t.direction, t.kind, t.payload) for t in ledger.traffic()]
