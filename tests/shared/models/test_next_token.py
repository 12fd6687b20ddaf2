"""Next-token loss: it is transformers' own, the same in every form, and leaves no trace."""

import os
from math import log

import pytest
import torch
from torch.overrides import TorchFunctionMode

from shared.base.flat import flatten
from shared.models import next_token
from shared.models.load import load_model
from shared.models.next_token import example_losses, loss_tensor, next_token_loss

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of transformers


@pytest.fixture
def module():
    return load_model("byte-gpt", 0).module


@pytest.fixture(scope="module")
def blocks():
    return torch.randint(3, 259, (4, 64), generator=torch.Generator().manual_seed(0))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_the_loss_is_transformers_own(module, blocks):
    theirs = module(blocks, labels=blocks).loss.item()
    assert next_token_loss(module, blocks) == pytest.approx(theirs, abs=1e-6)
    assert theirs == pytest.approx(log(259), abs=0.2)


def test_the_loss_of_another_architecture_is_transformers_own(blocks):
    module = llama()
    theirs = module(blocks, labels=blocks).loss.item()
    assert next_token_loss(module, blocks) == pytest.approx(theirs, abs=1e-6)


def test_every_form_of_the_loss_is_the_same_number(module, blocks):
    loss = next_token_loss(module, blocks)
    assert loss_tensor(module, blocks).item() == loss
    each = example_losses(module, blocks)
    assert each.shape == (4,)
    assert each.mean().item() == pytest.approx(loss, abs=1e-12)
    alone = [next_token_loss(module, block[None]) for block in blocks]
    assert each.tolist() == pytest.approx(alone, abs=1e-6)


def test_chunks_change_nothing(module, blocks, monkeypatch):
    whole = loss_tensor(module, blocks)
    for rows in (1, 100):
        monkeypatch.setattr(next_token, "CHUNK_LOGITS", 259 * rows)
        assert torch.equal(loss_tensor(module, blocks), whole)


def test_the_gradient_is_transformers_own(module, blocks):
    module(blocks, labels=blocks).loss.backward()
    theirs = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module.zero_grad()
    loss_tensor(module, blocks).backward()
    for name, parameter in module.named_parameters():
        assert torch.allclose(parameter.grad, theirs[name], rtol=1e-4, atol=1e-7), name


def test_measuring_a_loss_leaves_no_trace(module, blocks):
    flat = flatten(module).flat
    before = flat.clone()
    losses = {next_token_loss(module, blocks) for _ in range(3)}
    assert len(losses) == 1
    assert torch.equal(flat, before)
    assert all(parameter.grad is None for parameter in module.parameters())
    loss_tensor(module, blocks).backward()  # parameters are still those of autograd


def test_the_loss_follows_swapped_and_replaced_parameters(module, blocks):
    class Shifted(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            args = [arg + noise if arg is weight else arg for arg in args]
            return func(*args, **(kwargs or {}))

    weight = module.transformer.wte.weight
    noise = 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    plain = next_token_loss(module, blocks)
    with Shifted():
        replaced = next_token_loss(module, blocks)
    before = weight.data
    weight.data = before + noise
    assert next_token_loss(module, blocks) == replaced != plain
    weight.data = before
    assert next_token_loss(module, blocks) == plain


def test_the_loss_is_computed_in_float32_whatever_the_parameters_are(module, blocks):
    loss = next_token_loss(module, blocks)
    low = module.to(torch.bfloat16)
    assert next_token_loss(low, blocks) == pytest.approx(loss, abs=0.02)
    assert example_losses(low, blocks).dtype == torch.float64
