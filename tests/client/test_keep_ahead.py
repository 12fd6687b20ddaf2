"""What is kept of a site's examples is computed for all of them, if the run comes to them."""

import numpy as np
import pytest
import torch
from federation import config as federation_config
from tiny_reviews import CLASSES, folders, reviews  # noqa: F401  (fixtures)

from client.site.keep_ahead import gradient_draws, keep_ahead, query_draws
from client.site.site import LocalSite
from shared.features.store import example_keys
from shared.protocol.messages import Request
from shared.protocol.site_id import SiteId
from shared.training.oracle import Oracle
from shared.training.server_choices import resolve_choices
from shared.training.site_data import SiteData
from shared.training.validate import configure

pytestmark = pytest.mark.usefixtures("one_thread")
HEAD = {"scope": "head", "features": "mean"}
LAST = {"scope": "last:1"}


@pytest.fixture
def chosen(folders, tmp_path):
    def make(kind, **changes):
        model = folders["head" if kind is HEAD else "words"]
        settings = {"model": model, **CLASSES, **kind, "keep_disk": 0, **changes}
        return resolve_choices(federation_config(tmp_path, **settings))

    return make


def site_of(config, oracle):
    examples = SiteData.of(config, oracle.language_model).shard(0, 1).queries
    return LocalSite(SiteId(0, "a"), examples, config)


def ask(config, oracle, site, round_=1):
    request = Request(round_, 0.01, oracle.replica.digest(), bytes(16), bytes(16))
    return site.measure(oracle, request)


def missing(kind, oracle, site):
    """How many of a site's examples nothing is kept of."""
    rows = torch.from_numpy(site.examples.batch(np.arange(len(site.examples))))
    store = oracle.task.readout.kept._store if kind is HEAD else oracle.kept._store
    return len(store.missing(example_keys(rows[:, 1:].numpy())))


@pytest.mark.parametrize(
    ("settings", "draws"),
    [
        ({"zo_batch_size": 3, "num_rounds": 4}, [3, 3, 3]),
        ({"zo_batch_size": 0, "num_rounds": 3}, [0, 0]),
        ({"zo_batch_size": 3, "num_rounds": 2, "query_data": "fresh", "queries": 5}, [15]),
        ({"zo_batch_size": 3, "num_rounds": 2, "query_data": "shared", "queries": 5}, [15]),
        ({"zo_batch_size": 3, "num_rounds": 2, "local_steps": 4}, [12]),
        ({"zo_batch_size": 3, "num_rounds": 11, "num_clients": 10, "clients_per_round": 2}, [3, 3]),
        ({"mode": "fo", "num_rounds": 3}, []),
    ],
)
def test_rounds_that_are_left_draw_so_many_examples(settings, draws):
    assert [*query_draws(configure(settings), 2, True)] == draws


@pytest.mark.parametrize(
    ("settings", "can", "draws"),
    [
        ({"mode": "fo", "bp_batch_size": 3, "num_rounds": 3}, True, [3, 3]),
        ({"mode": "fo", "bp_batch_size": 3, "num_rounds": 3}, False, []),
        ({"mode": "fedavg", "bp_batch_size": 3, "num_rounds": 2, "local_steps": 4}, True, [12]),
        ({"mode": "calibrate", "bp_batch_size": 3, "num_rounds": 6, "bp_interval": 4}, True, [3]),
        ({"mode": "zo", "num_rounds": 3}, True, []),
    ],
)
def test_rounds_of_gradients_draw_so_many_examples(settings, can, draws):
    assert [*gradient_draws(configure(settings), 2, can)] == draws


def test_examples_are_kept_if_they_are_drawn_once_on_average(chosen):
    class Keeper:
        rows = torch.zeros(0)

        def keep(self, rows):
            self.rows = rows

    examples = site_of(chosen(HEAD), Oracle.of(chosen(HEAD))).examples
    for draws, count in (
        ([len(examples) - 1], 0),
        ([len(examples)], 60),
        ([1] * 60, 60),
        ([0], 60),
    ):
        keeper = Keeper()
        keep_ahead(keeper, examples, iter(draws))
        assert len(keeper.rows) == min(count, len(examples))


@pytest.mark.parametrize("kind", [HEAD, LAST])
def test_a_long_run_computes_all_in_its_first_round_and_a_short_one_its_batches(kind, chosen):
    seen = {}
    for rounds in (1, 50):
        config = chosen(kind, zo_batch_size=4, num_rounds=rounds)
        oracle = Oracle.of(config)
        site = site_of(config, oracle)
        ask(config, oracle, site)
        seen[rounds] = missing(kind, oracle, site)
    assert seen[1] > 0
    assert seen[50] == 0


@pytest.mark.parametrize("kind", [HEAD, LAST])
def test_numbers_are_those_of_batch_by_batch(kind, chosen, monkeypatch):
    config = chosen(kind, zo_batch_size=4, num_rounds=50)
    replies = []
    for does in (True, False):
        oracle = Oracle.of(config)
        site = site_of(config, oracle)
        if not does:
            monkeypatch.setattr(site, "keep_ahead", lambda *_: None)
        replies.append([ask(config, oracle, site, round_) for round_ in (1, 2)])
    for ahead, alone in zip(*replies, strict=True):
        assert ahead.differences.tobytes() == alone.differences.tobytes()
        assert ahead.loss == alone.loss
