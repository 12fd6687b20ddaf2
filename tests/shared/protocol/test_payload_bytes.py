"""What travels does not grow with the model: at most 400 bytes each way for 64 queries."""

import pytest
from federation import config, federate

from shared.models.load import load_model
from shared.models.model import LanguageModel
from shared.models.tokenizers import ByteTokenizer

MOST = 400
QUERIES = {"queries": 64, "zo_batch_size": 1, "num_rounds": 2, "eval_blocks": 1}


def payloads(result):
    """Payload bytes of every message of a round: round, site, direction, bytes."""
    return [row[1:4] + row[5:6] for row in result.rows["traffic"] if row[4] != "control"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return federate(config(tmp_path_factory.mktemp("small"), num_clients=1, **QUERIES))


def test_64_queries_take_at_most_400_bytes_up_and_down(small):
    assert payloads(small) == [
        (1, "0", "down", 72),
        (1, "0", "up", 300),
        (2, "0", "down", 360),
        (2, "0", "up", 300),
    ]
    for direction in ("up", "down"):
        assert small.summary[f"payload_bytes_{direction}_per_client_round"] <= MOST


@pytest.mark.slow
def test_no_other_client_makes_it_more(tmp_path, small):
    result = federate(config(tmp_path, num_clients=3, **QUERIES))
    assert {row[2:] for row in payloads(result)} == {row[2:] for row in payloads(small)}


@pytest.mark.slow
def test_a_model_140_times_as_large_takes_the_same_bytes(tmp_path, small):
    large = load_model("20M", 1)
    LanguageModel("20M", large.module, ByteTokenizer()).save(tmp_path / "20M")
    chosen = {"model": str(tmp_path / "20M"), "num_clients": 1, "snapshot_interval": 0}
    result = federate(config(tmp_path, **chosen, **QUERIES))
    assert result.summary["parameters"] > 140 * small.summary["parameters"]
    assert payloads(result) == payloads(small)
    assert max(row[-1] for row in payloads(result)) <= MOST
