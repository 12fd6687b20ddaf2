"""Benchmarks run, small, and say what they measured."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from dandelion.bench import bandwidth, cut, growth, parallel, prefix_cache, query, replay
from dandelion.cli.bench import app
from shared.base.errors import ConfigError
from shared.models.gpt2 import Shape, build
from shared.models.next_token import next_token_loss


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before
    torch.set_num_threads(before)


def test_the_replay_is_timed_in_every_way():
    rows = replay.replay(repeats=1, size="byte-gpt", rounds=3)
    assert [row.name.partition(",")[0] for row in rows] == [
        "1",  # 1,000 rounds in one pass
        "3 rounds in one pass",
        "3 rounds",
        "pool replay (FedKSeed)",
        "flat normals and SGD steps (DeComFL)",
    ]
    assert rows[0].ratio == 1
    assert all(row.seconds > 0 and "per second and core" in row.note for row in rows)


def test_a_query_is_timed_against_transformers_own_forwards_and_ours():
    rows = query.query(1, (query.QueryCase("byte-gpt", 2, 16),))
    named = [(row.name.partition(",")[0], row.note) for row in rows]
    assert [name for name, _ in named][:3] == [query.PLAIN, query.LIGHT, query.QUERY]
    assert named[-1] == (query.QUERY, f"to {query.LIGHT}")
    assert {note for _, note in named[:-1]} == {f"to {query.PLAIN}"}
    assert rows[0].ratio == 1


def test_the_plain_forward_of_a_query_computes_the_same_loss():
    module, blocks = build("byte-gpt", 1).module, torch.arange(40).view(2, 20) % 259
    assert query.plain_loss(module.to_transformers(), blocks) == next_token_loss(module, blocks)


def test_batched_queries_are_timed_against_one_by_one_and_plain():
    shape = Shape(16, 1, 2, 16, 259)
    rows = parallel.parallel(1, (parallel.BatchCase(1, 8, 2),), shape)
    bases = ("one by one, lowrank", "one by one, rademacher", "plain forwards")
    assert {row.note for row in rows} == {f"to {base}" for base in bases}
    assert len({row.name for row in rows}) == len(rows) - 2  # the batched one has three ratios


def test_frozen_parts_are_timed_both_ways(monkeypatch):
    tiny = {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 64}
    tiny |= {"num_attention_heads": 2, "vocab_size": 30000}
    tiny_encoder = BertForSequenceClassification(BertConfig(**tiny))
    monkeypatch.setattr(prefix_cache, "encoder", lambda: tiny_encoder)
    monkeypatch.setattr(prefix_cache, "QUERIES", 2)
    monkeypatch.setattr(prefix_cache, "LENGTH", 16)
    rows = prefix_cache.prefix_cache(repeats=1)
    scopes = [row.name.split(", ")[1] for row in rows[::2]]
    assert scopes == [f"scope {name}" for name in prefix_cache.SCOPES]
    assert [row.ratio for row in rows[::2]] == [1, 1, 1]


def test_kept_activations_are_timed_against_all_blocks(monkeypatch):
    tiny = {"hidden_size": 64, "num_hidden_layers": 8, "intermediate_size": 64}
    tiny |= {"num_attention_heads": 2, "vocab_size": 30000}
    monkeypatch.setattr(cut, "causal", lambda: LlamaForCausalLM(LlamaConfig(**tiny)))
    whole, ours = cut.cut(repeats=1)
    assert whole.ratio == 1
    assert min(ours.seconds, whole.seconds, ours.ratio) > 0
    tokens = (cut.texts()[:, 1:] >= 0).sum().item()
    assert f"{tokens * 64 * 4 / 16 / 1000:.0f} kB kept" in ours.note


def test_bandwidth_is_that_of_a_copy_or_less_where_more_is_done(monkeypatch):
    monkeypatch.setitem(bandwidth.SHAPES, "cpu", (64, 64))
    rows = bandwidth.bandwidth("cpu", repeats=1)
    assert rows[0].ratio == 1
    assert all("GB/s" in row.note for row in rows)
    families = {row.name.partition(":")[0] for row in rows[1:] if ":" in row.name}
    assert families == {"rademacher", "lowrank"}
    assert any(row.name.startswith("plain product of 16 rows") for row in rows)


def test_without_cuda_the_bandwidth_table_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments in (["--device", "cuda"], ["bandwidth", "--device", "cuda"]):
        done = CliRunner().invoke(app, arguments)
        assert isinstance(done.exception, ConfigError)
        assert "if torch sees a CUDA device" in str(done.exception)


def test_a_bench_without_a_name_shows_what_there_is():
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 2
    assert "replay" in done.output


def test_exponents_are_slopes_and_the_picture_is_drawn(tmp_path, rendered):
    x = (1.0, 10.0, 100.0)
    line = growth.Curve("round", "clients", "s", x, [3 * v for v in x])
    square = replace(line, name="square", unit="MiB", y=[v**2 for v in x])
    assert line.exponent == pytest.approx(1)
    assert square.exponent == pytest.approx(2)
    growth.draw([line, square, replace(line, against="queries")], tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(("what", "value"), [("size", "0.1 M"), ("replay", "4096")])
def test_a_point_of_growth_has_what_its_curves_need(what, value, capsys, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(growth, "REPEATS", 1)
    growth.main(what, value)
    point = json.loads(capsys.readouterr().out)
    torch.set_num_threads(before)
    assert point["replay"] > 0
    assert point["parameters"] == (124_864 if what == "size" else 4096)
    assert ("memory" in point) == (what == "size")
