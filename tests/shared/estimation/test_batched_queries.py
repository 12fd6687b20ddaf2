"""Directions in one batched forward give the losses that they give one by one (invariant I8)."""

import numpy as np
import pytest
import torch
from federation import config, federate
from torch import nn

from shared.base.errors import ConfigError
from shared.base.flat import flatten
from shared.directions import DIRECTIONS
from shared.estimation import batched_parameters
from shared.estimation.batched_queries import BatchedQueries
from shared.estimation.perturber import Perturber
from shared.estimation.two_point import two_point
from shared.models import next_token
from shared.models.next_token import next_token_loss
from shared.randomness.streams import Key
from shared.training.oracle import Oracle

EPS, KEYS = 1e-2, [Key(7, 3, 0, k) for k in range(5)]
VOCABULARY = 50
SMALL = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "num_attention_heads": 2,
         "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 16}  # fmt: skip


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    )


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=1))


def bert():
    from transformers import BertConfig, BertLMHeadModel

    return BertLMHeadModel(BertConfig(**SMALL, is_decoder=True))


def granite():
    """Like Llama, but its logits are divided after the last layer."""
    from transformers import GraniteConfig, GraniteForCausalLM

    return GraniteForCausalLM(GraniteConfig(**SMALL, num_key_value_heads=1, logits_scaling=3.0))


def gemma():
    """Its norms multiply by 1 + w, which has no batched form here."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=8))


MODELS = {"gpt2": gpt2, "llama": llama, "bert": bert, "granite": granite}


def built(name, only=lambda parameter: True):
    torch.manual_seed(1)
    model = flatten((MODELS | {"gemma": gemma})[name]().eval(), only)
    model.flat.add_(torch.randn(model.flat.shape), alpha=0.02)  # biases and gains are not 0 and 1
    model.layout.clear_padding_(model.flat)
    return model


def blocks_of(count, batch=2, length=7):
    return (torch.arange(count * batch * length) * 79 % VOCABULARY).view(count, batch, length)


def compare(model, family, blocks):
    """Losses (2, p) of all directions at once and one by one."""
    directions = DIRECTIONS[family](model.layout)
    perturber = Perturber(model, directions)
    losses = BatchedQueries(model, directions, perturber).losses(KEYS[: len(blocks)], EPS, blocks)
    expected = torch.zeros(2, len(blocks), dtype=torch.float64)
    for row, scale in enumerate((EPS, -EPS)):
        for k, block in enumerate(blocks):
            with perturber.at(KEYS[k], scale):
                expected[row, k] = next_token_loss(model.module, block)
    return losses, expected


@pytest.mark.parametrize("family", ["rademacher", "hadamard", "gaussian", "lowrank"])
@pytest.mark.parametrize("name", MODELS)
def test_i8_all_at_once_and_one_by_one_agree(name, family):
    model, blocks = built(name), blocks_of(len(KEYS))
    before = model.flat.clone()
    losses, expected = compare(model, family, blocks)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
    assert len(set(losses.flatten().tolist())) == 2 * len(KEYS)
    assert torch.equal(model.flat, before)


@pytest.mark.parametrize("family", ["rademacher", "lowrank"])
@pytest.mark.parametrize("chunk", [VOCABULARY, 5 * VOCABULARY, 30 * VOCABULARY])
def test_i8_holds_for_logits_and_matrices_in_pieces(family, chunk, monkeypatch):
    monkeypatch.setattr(next_token, "CHUNK_LOGITS", chunk)
    monkeypatch.setattr(batched_parameters, "STACK_ELEMENTS", 200)
    losses, expected = compare(built("gpt2"), family, blocks_of(3))
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("only", ["h.1", "ln_", "bias", "wpe"])
def test_i8_holds_if_only_some_parameters_are_trained(only):
    losses, expected = compare(built("gpt2", lambda name: only in name), "lowrank", blocks_of(3))
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)


def test_as_many_positions_as_examples_are_not_taken_for_a_batch():
    losses, expected = compare(built("llama"), "lowrank", blocks_of(3, batch=1, length=6))
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
    losses, expected = compare(built("gpt2"), "lowrank", blocks_of(3, batch=1, length=6))
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)


def test_logits_never_take_more_than_a_chunk(monkeypatch):
    largest = []
    cross_entropy = next_token.F.cross_entropy

    def watched(rows, *args, **named):
        largest.append(rows.numel())
        return cross_entropy(rows, *args, **named)

    model = built("llama")
    directions = DIRECTIONS["lowrank"](model.layout)
    parallel = BatchedQueries(model, directions, Perturber(model, directions))
    monkeypatch.setattr(next_token, "CHUNK_LOGITS", 4 * VOCABULARY)
    parallel.losses(KEYS[:1], EPS, blocks_of(1))
    monkeypatch.setattr(next_token.F, "cross_entropy", watched)
    parallel.losses(KEYS, EPS, blocks_of(5))
    assert max(largest) == 4 * VOCABULARY
    assert sum(largest) == 10 * 2 * 6 * VOCABULARY


class Odd(nn.Module):
    """A model that does something with its parameters that has no batched form."""

    def __init__(self, change):
        super().__init__()
        self.inner, self.change = gpt2(), change
        self.bank = nn.Parameter(torch.ones(16, 16) / 9)

    def get_output_embeddings(self):
        return self.inner.lm_head

    def forward(self, blocks, **named):
        hidden = self.inner.transformer(blocks).last_hidden_state
        return (self.inner.lm_head(self.change(hidden, self.bank)),)


def odd(change):
    torch.manual_seed(1)
    model = flatten(Odd(change).eval())
    directions = DIRECTIONS["lowrank"](model.layout)
    return BatchedQueries(model, directions, Perturber(model, directions))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda hidden, bank: hidden + torch.cumsum(bank, 0)[0], "torch.cumsum"),
        (lambda hidden, bank: torch.einsum("btc,cd->btd", hidden, bank), "torch.functional.einsum"),
        (lambda hidden, bank: hidden * bank[0], "__getitem__"),
    ],
)
def test_a_function_without_a_batched_form_is_refused_by_name(change, name):
    with pytest.raises(ConfigError, match=f"{name} on parameter 'bank'.*set parallel-queries = 1"):
        odd(change).losses(KEYS, EPS, blocks_of(5))


def test_a_model_whose_norms_add_one_to_their_gains_is_batched():
    losses, expected = compare(built("gemma"), "lowrank", blocks_of(5))
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)


def test_a_module_that_mixes_the_examples_of_a_batch_is_refused():
    mixing = odd(lambda hidden, bank: (hidden - 5 * hidden.mean(0)) @ bank)
    with pytest.raises(ConfigError, match="in a batch of directions"):
        mixing.losses(KEYS, EPS, blocks_of(5))


def test_differences_are_those_of_the_two_point_estimate():
    model = built("gpt2")
    directions = DIRECTIONS["lowrank"](model.layout)
    perturber, block = Perturber(model, directions), blocks_of(1)[0]
    losses = BatchedQueries(model, directions, perturber).losses(KEYS, EPS, block.expand(5, -1, -1))
    alone = two_point(lambda k: next_token_loss(model.module, block), perturber, KEYS, EPS)
    np.testing.assert_allclose((losses[0] - losses[1]).numpy(), alone, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"query_data": "fresh"}, {"local_steps": 2}, {}])
def test_sites_measure_the_same_whatever_the_number_of_parallel_queries(tmp_path, changes):
    common = {"directions": "lowrank", "queries": 5, "num_rounds": 2, "num_clients": 2, **changes}
    outcomes = [
        federate(config(tmp_path, f"at-{p}", parallel_queries=p, **common)) for p in (1, 2, 8)
    ]
    for outcome in outcomes[1:]:
        torch.testing.assert_close(outcome.flat, outcomes[0].flat, rtol=0, atol=2e-5)
        rows = zip(outcome.rows["metrics"], outcomes[0].rows["metrics"], strict=True)
        assert all(mine[2] == pytest.approx(other[2], rel=1e-6) for mine, other in rows)
    again = federate(config(tmp_path, "again", parallel_queries=2, **common))
    assert again.digest == outcomes[1].digest


@pytest.mark.parametrize(
    "settings", [{"mode": "fo"}, {"mode": "fedavg"}, {"mode": "instruct", "guidance": "reuse"}]
)
def test_the_setting_is_refused_if_no_plain_direction_is_measured(tmp_path, settings):
    with pytest.raises(ConfigError, match="parallel-queries"):
        config(tmp_path, parallel_queries=4, **settings)


def test_an_oracle_measures_in_parallel(tmp_path):
    oracle = Oracle.of(config(tmp_path, directions="lowrank"))
    losses = oracle.parallel.losses(KEYS, EPS, blocks_of(5))
    assert losses.shape == (2, 5)
    assert torch.isfinite(losses).all()


@pytest.mark.parametrize("changes", [{"query_data": "fresh"}, {"estimator": "forward"}])
def test_conversations_are_measured_alike_at_once_and_one_by_one(tmp_path, changes):
    """All is trained, the output layer too, and fresh batches predict unequal counts."""
    common = {
        "task": "instruction", "dataset": "python-docs", "max_samples": 40, "block_size": 64,
        "directions": "lowrank", "queries": 3, "num_rounds": 1, "num_clients": 2, **changes,
    }  # fmt: skip
    alone, at_once = (
        federate(config(tmp_path, f"at-{p}", parallel_queries=p, **common)) for p in (1, 3)
    )
    torch.testing.assert_close(at_once.flat, alone.flat, rtol=0, atol=2e-5)
    (mine,), (other,) = at_once.rows["metrics"], alone.rows["metrics"]
    assert mine[2:4] == pytest.approx(other[2:4], rel=1e-3)  # loss, and norm of the estimate
