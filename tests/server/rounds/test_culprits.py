"""A site that ruins rounds is named and left out, whatever it sends: numbers, gradients or both."""

import io
from dataclasses import replace

import numpy as np
import pytest
from federation import Network, altered, config, federate, folder_of, is_reply, ledger_of
from rich.console import Console

from dandelion.monitor.status import render
from server.aggregation.culprits import find_culprits
from server.ledger.ledger import Ledger
from server.ledger.records import Contribution
from shared.training.oracle import Oracle

FIVE = {"num_clients": 5, "min_replies": 1, "queries": 2, "eval_interval": 0, "num_rounds": 10}
NORM = {"scope": "regex:ln_f"}


def loud(chosen, times, site=0):
    """A network in which all that one site sends is so many times as large, and turned round."""
    codec = Oracle.of(chosen).replica.codec

    def alter(m):
        gradient = codec.encode(codec.decode(m.gradient) * times) if m.gradient else b""
        return replace(m, gradient=gradient, differences=m.differences * times)

    def change(reply):
        return [altered(reply, alter)] if is_reply(reply, site) else [reply]

    return Network(chosen, change=change)


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "fo", "learning_rate": 20.0, **NORM},
        {"mode": "fo", "learning_rate": 20.0, "codec": "int8", **NORM},
        {"mode": "fedavg", "learning_rate": 0.2, **NORM},
        {"mode": "calibrate", "bp_interval": 2, "learning_rate": 20.0, **NORM},
        {"local_steps": 2, "learning_rate": 6e-3},
        {"seed_schedule": "independent", "learning_rate": 6e-3},
        {"merge_clients": True, "learning_rate": 6e-3},
        {"clients_per_round": 3, "learning_rate": 6e-3, "num_rounds": 20},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_site_that_ruins_rounds_is_named_and_left_out(tmp_path, settings):
    chosen = config(tmp_path, **FIVE | settings)
    result = federate(chosen, loud(chosen, -100))
    (rewind,) = result.summary["rewinds"]
    assert rewind[3].endswith("; caused by 0, left out")
    assert result.summary["refusals"] == {"left out": 1}
    after = {row[2] for row in result.rows["contributions"] if row[0] > rewind[0]}
    assert after == {"1", "2", "3", "4"}
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(render(folder_of(chosen)))
    assert f"left out in round {rewind[0]}" in console.export_text()


def test_the_ledger_has_the_lengths_of_gradients_and_they_are_bound(tmp_path):
    chosen = config(tmp_path, mode="fo", num_rounds=2, **NORM)
    federate(chosen)
    with ledger_of(chosen) as ledger:
        lengths = [site.length for site in ledger.contributions(2)]
        assert len(lengths) == 3
        assert all(length > 0 for length in lengths)
        ledger._database.write("UPDATE lengths SET length = 2 * length WHERE round = 2")
    with pytest.raises(Exception, match="entries, row 2: does not fit its chain"):
        Ledger.open(folder_of(chosen) / "ledger.sqlite")


def sent(name, length, numbers=()):
    gradient = b"" if length is None else b"g"
    slot = ord(name)
    return Contribution(*(3, slot, name, 9, 2.0, 0.1, np.float32(numbers), gradient), length=length)


def culprits(tmp_path, *sites, **changes):
    blamed = find_culprits(config(tmp_path, **changes), [sites, sites])
    return () if blamed is None else blamed.sites


def test_each_kind_of_reply_is_compared_with_its_own_kind(tmp_path):
    numbers = [sent(name, None, [1e-3, -1e-3]) for name in "abc"]
    gradients = [sent(name, 5.0) for name in "def"]
    assert culprits(tmp_path, *numbers, *gradients) == ()
    assert culprits(tmp_path, *numbers, *gradients, sent("g", 500.0)) == ("g",)
    assert culprits(tmp_path, *numbers, sent("g", None, [1, 1]), *gradients) == ("g",)


def test_differences_along_a_gradient_count_as_well(tmp_path):
    honest = [sent(name, 5.0, [1e-3, 1e-3]) for name in "abcd"]
    assert culprits(tmp_path, *honest, sent("e", 5.0, [1, 1])) == ("e",)


def test_nobody_is_blamed_without_others_to_compare_with(tmp_path):
    assert culprits(tmp_path, sent("a", 5.0), sent("b", 5e5)) == ()
    assert culprits(tmp_path, sent("a", 1.0), sent("b", 2.0), sent("c", 3.0)) == ()
    many = [sent(name, 5.0) for name in "abcd"]
    assert culprits(tmp_path, *many, sent("e", 5e5), aggregation="median") == ()
