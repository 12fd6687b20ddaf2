"""What a site says is believed as far as it can be checked, and never enters a log or table raw."""

import csv
import io
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from federation import (
    Network,
    altered,
    config,
    federate,
    folder_of,
    is_reply,
    ledger_of,
    resumed,
    with_payload,
)
from flwr.app import Error
from hazards import Cut, cut_at, misbehaving
from rich.console import Console

from dandelion.monitor.status import render
from server.aggregation.outliers import MOST_RATIO, find_outliers
from server.ledger.records import Contribution
from server.rounds.round_log import RoundLog
from shared.base.errors import StalledError
from shared.base.metrics import EvalSums
from shared.base.text import escape_text
from shared.protocol.flower_records import unpack
from shared.training.oracle import Oracle

FIVE = {"num_clients": 5, "min_replies": 1, "queries": 4, "eval_interval": 0}
GUARDED = {**FIVE, "num_rounds": 24, "learning_rate": 4e-3, "snapshot_interval": 3}
RESET, FORGED = "\x1bc", "x\nround 3: all is well"


def scaled(factor, site=0):
    def change(reply):
        if not is_reply(reply, site):
            return [reply]
        return [altered(reply, lambda m: replace(m, differences=m.differences * factor))]

    return change


def test_numbers_out_of_all_proportion_are_refused_with_a_reason(tmp_path):
    chosen = config(tmp_path, **FIVE)
    huge = np.full(4, 1e9, np.float32)
    how = misbehaving(lambda r: [altered(r, lambda m: replace(m, differences=huge))], 0, 2)
    result = federate(chosen, Network(chosen, change=how))
    (row,) = result.rows["refusals"]
    assert row[1:4] == (2, "0", "out of proportion")
    assert "got 5e+11" in row[4]
    without = config(tmp_path, "without", **FIVE)
    assert (
        result.digest
        == federate(without, Network(without, change=misbehaving(lambda r: [], 0, 2))).digest
    )


def test_a_loss_out_of_all_proportion_is_refused(tmp_path):
    chosen = config(tmp_path, **FIVE)
    how = misbehaving(lambda r: [altered(r, lambda m: replace(m, loss=1e8))], 0, 2)
    assert federate(chosen, Network(chosen, change=how)).summary["refusals"] == {
        "out of proportion": 1
    }


def test_a_gradient_out_of_all_proportion_is_refused(tmp_path):
    chosen = config(tmp_path, mode="fo", scope="regex:ln_f", num_clients=4)
    codec = Oracle.of(chosen).replica.codec
    huge = codec.encode(torch.full((codec.layout.size,), 1e6))
    how = misbehaving(lambda r: [altered(r, lambda m: replace(m, gradient=huge))])
    result = federate(chosen, Network(chosen, change=how))
    assert result.summary["refusals"] == {"out of proportion": 1}


@pytest.mark.parametrize("times", [1, 300, 900])
def test_sites_that_differ_by_much_are_all_believed(tmp_path, times):
    numbers = [1.0, 1.0, 2.0, times]
    sites = [
        Contribution(3, k, str(k), 9, 2.0, 0.1, np.float32([size, -size]))
        for k, size in enumerate(numbers)
    ]
    assert find_outliers(config(tmp_path), sites, None) == []
    loud = replace(sites[3], differences=np.float32([2 * MOST_RATIO, 0]))
    (outlier,) = find_outliers(config(tmp_path), [*sites[:3], loud], None)
    assert outlier.site == "3"
    assert find_outliers(config(tmp_path), [sites[0], loud], None) == []  # one against one


def test_a_site_that_causes_a_rewind_is_named_and_left_out(tmp_path):
    chosen = config(tmp_path, **GUARDED)
    result = federate(chosen, Network(chosen, change=scaled(-100)))
    (rewind,) = result.summary["rewinds"]
    assert rewind[3].endswith("; caused by 0, left out")
    (row,) = [row for row in result.rows["refusals"] if row[3] == "left out"]
    assert row[1:3] == (rewind[0], "0")
    after = {row[2] for row in result.rows["contributions"] if row[0] > rewind[0]}
    assert after == {"1", "2", "3", "4"}
    assert result.summary["evaluation_loss_last"] < result.summary["evaluation_loss_first"]
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(render(folder_of(chosen)))
    assert f"left out in round {rewind[0]}" in console.export_text()


def test_it_stays_left_out_when_the_run_is_resumed(tmp_path):
    chosen = config(tmp_path, **GUARDED)
    whole = federate(chosen, Network(chosen, change=scaled(-100)))
    (rewind,) = whole.summary["rewinds"]
    cut = config(tmp_path, "cut", **GUARDED)
    with pytest.raises(Cut):
        federate(cut, Network(cut, change=scaled(-100)), cut_at(rewind[0] + 1))
    again = federate(resumed(cut), Network(cut, change=scaled(-100)))
    assert again.digest == whole.digest


def test_sites_that_are_needed_stay_and_are_named(tmp_path):
    chosen = config(tmp_path, **GUARDED | {"min_sites": 5})
    result = federate(chosen, Network(chosen, change=scaled(-100)))
    assert {row[3] for row in result.rows["refusals"]} == {"caused a rewind"}
    assert "caused by 0, but needed for 5 sites" in result.summary["rewinds"][0][3]


def test_nobody_is_blamed_if_the_rate_is_at_fault(tmp_path):
    chosen = config(tmp_path, **GUARDED | {"learning_rate": 1.0})
    result = federate(chosen)
    assert result.summary["rewinds"]
    assert result.summary["refused_replies"] == 0


def failing(reason):
    def change(reply):
        twin = altered(reply, lambda m: m)
        twin.__dict__["_content"], twin.__dict__["_error"] = None, Error(code=8, reason=reason)
        return [twin]

    return change


@pytest.mark.parametrize("text", [RESET, FORGED, "\u202e"])
def test_what_a_site_says_reaches_log_ledger_tables_and_terminal_escaped(tmp_path, caplog, text):
    caplog.set_level(logging.WARNING, "dandelion")
    chosen = config(tmp_path)
    federate(chosen, Network(chosen, change=misbehaving(failing(f"a{text}b"))))
    safe = escape_text(text)
    assert safe != text
    assert safe.isascii()
    assert safe in caplog.text
    with ledger_of(chosen) as ledger:
        (refusal,) = ledger.refusals()
        states = [state.error for state in ledger.site_states() if state.error]
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(render(folder_of(chosen)))
    csv_text = (folder_of(chosen) / "clients.csv").read_text()
    for where in (caplog.text, refusal.detail, *states, console.export_text(), csv_text):
        assert text not in where


def test_a_ledger_of_before_gives_no_raw_text_away_either(tmp_path):
    chosen = config(tmp_path)

    def taint(run, round_):
        if round_ == 2:
            run.ledger._insert_messages([], [refusal])

    refusal = replace(refusal_of("1"), detail=f"a{RESET}b")
    federate(chosen, on_round=taint)
    with ledger_of(chosen) as ledger:
        assert [each.detail for each in ledger.refusals()] == ["a\\x1bcb"]


def refusal_of(site):
    log = RoundLog(None)
    log.refuse(2, site, "error", "")
    return log.refusals[0]


def test_a_name_is_no_formula_in_a_spreadsheet(tmp_path):
    chosen = config(tmp_path)
    network = Network(chosen)
    network._contexts[2].node_config["site"] = "=cmd|' /C calc'!A0"
    federate(chosen, network)
    text = (folder_of(chosen) / "clients.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    names = {row["site"] for row in rows}
    assert "'=cmd|' /C calc'!A0" in names
    assert not [name for name in names if name.startswith("=")]
    assert "\n=cmd" not in (folder_of(chosen) / "shards.csv").read_text()


def test_a_site_that_claims_to_have_evaluated_on_more_than_it_may_is_refused(tmp_path):
    chosen = config(tmp_path, site_eval_fraction=0.2, eval_interval=1)

    def change(m):
        outcome = m.outcome and EvalSums(m.outcome.loss * 10**9, 10**9, m.outcome.confusion)
        return replace(m, outcome=outcome)

    how = misbehaving(lambda r: [altered(r, change)])
    assert federate(chosen, Network(chosen, change=how)).summary["refusals"] == {"bad outcome": 1}


def test_the_error_of_a_run_that_stalls_has_the_last_refusals_reason(tmp_path):
    chosen = config(tmp_path, min_replies=3)
    liar = Network(chosen, change=lambda r: [altered(r, more) if is_reply(r, 0) else r])
    with pytest.raises(StalledError, match=r"site 0 was refused: other examples \(\d+ expected"):
        federate(chosen, liar)


def more(measured):
    return replace(measured, examples=measured.examples + 1)


def test_a_surplus_record_is_told_its_own_size(tmp_path):
    def surplus(reply):
        return [with_payload(reply, unpack(reply.content)[0], b"s" * 77)]

    chosen = config(tmp_path)
    (row,) = federate(chosen, Network(chosen, change=misbehaving(surplus))).rows["refusals"]
    assert row[3:] == ("oversized", "no second record expected, got one of 77 bytes")
