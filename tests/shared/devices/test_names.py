"""Devices by name: which texts name some, which are refused, and what several of them need."""

import pytest
import torch
from small_config import small_config

from shared.base.errors import ConfigError
from shared.devices.names import check_presence, devices_of


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cpu", ["cpu"]),
        ("cpu, cpu", ["cpu", "cpu"]),
        ("cuda", ["cuda"]),
        ("cuda:1", ["cuda:1"]),
        ("cuda:0,1", ["cuda:0", "cuda:1"]),
        ("cuda:0,cuda:1", ["cuda:0", "cuda:1"]),
        ("cuda:3, 01", ["cuda:3", "cuda:1"]),
    ],
)
def test_a_text_names_devices_in_its_order(text, names):
    assert list(devices_of(text)) == names
    assert [str(torch.device(name)) for name in names] == names


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a piece is empty"),
        ("cuda:0,", "a piece is empty"),
        ("cpu,,cpu", "a piece is empty"),
        ("tpu", "'tpu' is no device"),
        ("cuda:x", "'cuda:x' is no device"),
        ("0,1", "'0' is no device"),
        ("cpu,1", "'cpu:1' is no device"),
        ("cuda:0,cpu", "a CPU and a card differ in their last bits"),
        ("cpu,cuda:0", "a CPU and a card differ in their last bits"),
        ("cuda,cuda:1", "each of several cards needs its number"),
        ("cuda:0,0", "a card is named twice"),
        ("cuda:1,cuda:01", "a card is named twice"),
    ],
)
def test_a_text_that_names_none_is_refused_with_its_reason(tmp_path, text, reason):
    with pytest.raises(
        ConfigError, match=f"device: cpu, cuda.* expected, got '{text}': .*{reason}"
    ):
        small_config(tmp_path, device=text)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mode": "fo"}, "mode 'fo': no directions are measured"),
        ({"scope": "head", "features": "mean"}, "scope 'head': a readout's slopes"),
        (
            {"scope": "head", "features": "mean", "estimator": "two-point"},
            "scope 'head': a readout's slopes",
        ),
        (
            {"objective": "rewards:next_likelihood"},
            "objective 'rewards:next_likelihood': a reward may write texts",
        ),
        ({"queries": 1}, "queries = 1: 3 devices expected at least 3 forward passes.*got 2"),
        (
            {"queries": 8, "parallel_queries": 4},
            "parallel-queries = 4 and queries = 8: 3 devices expected at least 3.*got 2",
        ),
    ],
)
def test_runs_that_leave_devices_idle_are_refused(tmp_path, changes, reason):
    with pytest.raises(
        ConfigError, match=f"device = 'cpu,cpu,cpu' with {reason}.*; use one device"
    ):
        small_config(tmp_path, device="cpu,cpu,cpu", **changes)
    small_config(tmp_path, device="cpu", **changes)


@pytest.mark.parametrize(("cards", "text"), [(2, "cuda:0,7"), (1, "cuda:1"), (0, "cuda")])
def test_cards_that_are_not_here_are_refused(monkeypatch, cards, text):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    expected = {2: "up to 1 .* sees 2 CUDA devices here, got 7", 1: "up to 0 .* 1 CUDA device here"}
    with pytest.raises(ConfigError, match=expected.get(cards, "no CUDA device is visible")):
        check_presence(text)
    check_presence("cpu,cpu")
