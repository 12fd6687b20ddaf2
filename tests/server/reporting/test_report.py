"""The readable files of a run agree with its ledger, each round once, also after a crash."""

import csv
import json
import struct
import tomllib
from pathlib import Path

import pytest

from client.app import app
from dandelion.engines.local import LocalGrid, contexts_of, run_local
from server.ledger.ledger import Ledger
from server.reporting.loss_plot import Curves, draw_losses, smooth, unit_of
from server.reporting.report import Report
from server.run import serve
from shared.config.schema import Config

TINY = {
    "max-samples": 20,
    "block-size": 32,
    "eval-blocks": 4,
    "eval-interval": 2,
    "num-clients": 3,
    "num-rounds": 4,
    "queries": 2,
    "step": "plain",
    "run-name": "tiny",
}
METRICS = ["timestamp", "round", "mode", "scope", "q", "lr", "batch size", "optimizer",
           "bp interval", "loss", "gradient norm", "evaluation loss", "bytes up", "bytes down",
           "forwards", "accuracy", "f1",
           "signal", "signal error", "site noise", "site noise error", "macro f1"]  # fmt: skip
CLIENTS = ["round", "site", "loss", "examples", "bytes up", "bytes down", "seconds", "refusal"]
SUMMARY = {"mode", "rounds", "parameters", "clients", "queries", "evaluation_loss_first",
           "evaluation_loss_last", "seconds", "digest", "payload_bytes_up_per_client_round",
           "payload_bytes_down_per_client_round", "message_bytes_up_per_client_round",
           "message_bytes_down_per_client_round", "refused_replies", "skipped_rounds"}  # fmt: skip


def config(folder, **changes):
    values = {key.replace("_", "-"): value for key, value in changes.items()}
    return Config.from_run_config({**TINY, "output-dir": str(folder), **values})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run_local(config(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The same run, cut off after two rounds and while its logs were being written."""
    half = run_local(config(tmp_path_factory.mktemp("runs"), num_rounds=2, save_model=False))
    for name in ("metrics.csv", "clients.csv"):
        with (half / name).open("a") as file:
            file.write("2,torn")
    return run_local(config(half.parent, resume=str(half)))


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """A run in which site 1 fails in round 2."""

    def failing(message, context):
        if message.metadata.group_id == "2" and context.node_config["partition-id"] == 1:
            raise MemoryError("site 1 has none left")
        return app(message, context)

    c = config(tmp_path_factory.mktemp("runs"), save_model=False)
    return serve(LocalGrid(failing, contexts_of(c)), c)


def read(path):
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    return head, [dict(zip(head, row, strict=True)) for row in rows]


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_metrics_have_exactly_the_agreed_columns_and_each_round_once(folder):
    head, rows = read(folder / "metrics.csv")
    assert head == METRICS
    assert [row["round"] for row in rows] == ["1", "2", "3", "4"]


def test_a_score_named_like_a_column_has_one_of_its_own(tmp_path):
    report = Report(tmp_path, None, None, None, ["loss", "accuracy", "macro f1", "rank"])
    assert report.columns == (*METRICS, "loss score", "macro f1 score", "rank")


def test_metrics_say_what_the_round_was(folder):
    row = read(folder / "metrics.csv")[1][1]
    assert (row["mode"], row["scope"], row["q"], row["optimizer"]) == ("zo", "full", "2", "sgd")
    assert (float(row["lr"]), row["batch size"], row["bp interval"]) == (0.02, "4", "0")
    assert 5 < float(row["loss"]) < 6
    assert float(row["gradient norm"]) > 0
    assert row["forwards"] == str(3 * (2 + 1))  # sites, queries and L(θ)
    assert (row["bytes up"], row["bytes down"]) == (str(3 * 52), str(3 * (72 + 4 + 36)))


def test_metrics_have_the_evaluation_of_rounds_that_were_evaluated(folder):
    rows = read(folder / "metrics.csv")[1]
    assert [row["evaluation loss"] != "" for row in rows] == [False, True, False, True]
    assert float(rows[-1]["evaluation loss"]) == pytest.approx(
        summary_of(folder)["evaluation_loss_last"], rel=1e-7
    )


def test_numbers_have_as_many_digits_as_were_measured(folder):
    for row in read(folder / "metrics.csv")[1]:
        assert len(row["loss"].replace(".", "").lstrip("0")) <= 8


def test_clients_have_exactly_the_agreed_columns_and_each_site_once_a_round(folder):
    head, rows = read(folder / "clients.csv")
    assert head == CLIENTS
    pairs = [(row["round"], row["site"]) for row in rows]
    assert pairs == [(r, s) for r in ("1", "2", "3", "4") for s in ("0", "1", "2")]


def test_clients_say_what_each_site_measured_and_sent(folder):
    for row in read(folder / "clients.csv")[1]:
        assert 5 < float(row["loss"]) < 6.5  # two queries are noisy
        assert int(row["examples"]) > 0
        assert row["bytes up"] == "52"
        assert row["bytes down"] == ("72" if row["round"] == "1" else "112")
        assert float(row["seconds"]) > 0
        assert row["refusal"] == ""


def test_the_rounds_loss_is_the_sites_by_their_examples(folder):
    metrics, clients = read(folder / "metrics.csv")[1], read(folder / "clients.csv")[1]
    for row in metrics:
        sites = [site for site in clients if site["round"] == row["round"]]
        total = sum(float(site["loss"]) * int(site["examples"]) for site in sites)
        mean = total / sum(int(site["examples"]) for site in sites)
        assert float(row["loss"]) == pytest.approx(mean, rel=1e-6)


def test_a_refused_reply_stands_with_its_reason_beside_its_site(troubled):
    rows = read(troubled / "clients.csv")[1]
    refused = [(row["round"], row["site"], row["refusal"]) for row in rows if row["refusal"]]
    assert refused == [("2", "1", "error")]
    assert len(rows) == 12
    summary = summary_of(troubled)
    assert (summary["refused_replies"], summary["refusals"]) == (1, {"error": 1})
    assert summary["rounds"] == 4


def test_the_summary_has_the_agreed_keys(folder):
    summary = summary_of(folder)
    assert set(summary) >= SUMMARY
    assert (summary["mode"], summary["rounds"], summary["parameters"]) == ("zo", 4, 124_864)
    assert (summary["clients"], summary["queries"], summary["refused_replies"]) == (3, 2, 0)
    assert summary["skipped_rounds"] == 0
    assert summary["seconds"] > 0
    assert 5 < summary["evaluation_loss_last"] < 6
    assert 5 < summary["evaluation_loss_first"] < 6


def test_the_summarys_bytes_are_means_per_client_and_round(folder):
    summary = summary_of(folder)
    assert summary["payload_bytes_up_per_client_round"] == 52
    assert summary["payload_bytes_down_per_client_round"] == (72 + 3 * 112) / 4
    for way in ("up", "down"):
        payload = summary[f"payload_bytes_{way}_per_client_round"]
        assert payload < summary[f"message_bytes_{way}_per_client_round"] < payload + 200


def test_the_summarys_digest_is_the_ledgers_last(folder):
    ledger = Ledger.open(folder / "ledger.sqlite")
    assert summary_of(folder)["digest"] == ledger.digest(4).hex()
    ledger.close()


def test_after_a_resume_each_round_stands_once_in_both_logs(folder, resumed):
    for name, site in (("metrics.csv", None), ("clients.csv", "site")):
        whole, again = read(folder / name), read(resumed / name)
        assert again[0] == whole[0]
        pairs = [(row["round"], row.get(site)) for row in again[1]]
        assert pairs == [(row["round"], row.get(site)) for row in whole[1]]


def test_the_logs_of_a_resumed_run_equal_those_of_an_uninterrupted_one(folder, resumed):
    for name, of_the_run in (("metrics.csv", {"timestamp"}), ("clients.csv", {"seconds"})):
        bytes_ = {"bytes up", "bytes down"}  # sites introduce themselves again
        for row, other in zip(read(folder / name)[1], read(resumed / name)[1], strict=True):
            same = row.keys() - of_the_run - bytes_
            assert {key: row[key] for key in same} == {key: other[key] for key in same}
    assert summary_of(resumed)["digest"] == summary_of(folder)["digest"]


def test_its_config_file_runs_to_the_same_digest(folder, tmp_path):
    read_back = tomllib.loads((folder / "config.toml").read_text())
    again = Config.from_run_config({**read_back, "output-dir": str(tmp_path)})
    assert summary_of(run_local(again))["digest"] == summary_of(folder)["digest"]


def size_of(png: Path):
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_the_picture_is_a_png_of_sensible_size(folder):
    width, height = size_of(folder / "loss.png")
    assert 1200 <= width <= 2400
    assert 500 <= height <= 1200
    assert 10_000 < (folder / "loss.png").stat().st_size < 500_000


def test_a_run_without_a_round_can_be_drawn(tmp_path):
    ledger = Ledger.create(tmp_path / "ledger.sqlite", {"run": b"", "config": b"", "base": b""})
    draw_losses(ledger, tmp_path / "cost $1$.png")
    assert Curves.of(ledger).headline.startswith("0 rounds, 0 bytes of payload per client")
    ledger.close()
    assert size_of(tmp_path / "cost $1$.png")[0] >= 1200


def test_the_curves_are_the_ledgers(folder):
    ledger = Ledger.open(folder / "ledger.sqlite")
    curves = Curves.of(ledger)
    ledger.close()
    assert (curves.rounds, curves.evaluated) == ([1, 2, 3, 4], [0, 2, 4])
    assert len(curves.spent) == 5
    assert curves.spent[4] - curves.spent[3] == 52 + 112  # of one client, both ways
    assert curves.message_share > 1


def test_smoothing_keeps_ends_means_and_lines():
    assert smooth([]) == []
    assert smooth([3.0, 1.0]) == [3.0, 1.0]  # too few to smooth
    line = [float(n) for n in range(100)]
    assert smooth(line) == pytest.approx(line)
    jagged = [1.0, 3.0] * 50
    assert smooth(jagged)[0] == 1.0
    assert all(1.8 < value < 2.2 for value in smooth(jagged)[5:-5])


@pytest.mark.parametrize(
    ("count", "unit"),
    [(0, "bytes"), (999, "bytes"), (1000, "kB"), (2.5e6, "MB"), (3e9, "GB"), (4e12, "GB")],
)
def test_the_axis_has_the_unit_that_fits(count, unit):
    assert unit_of(count)[0] == unit


def test_no_model_is_written_if_none_is_wanted(folder, resumed, troubled):
    assert (folder / "model" / "model.safetensors").exists()
    assert not (troubled / "model").exists()
