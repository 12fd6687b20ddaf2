"""The light GPT-2 is transformers' own to the bit, and becomes it where somebody needs that."""

import subprocess
import sys

import pytest
import torch

from shared.base.flat import flatten
from shared.models.gpt2 import SHAPES, LightGPT2, Shape, build, hollow
from shared.models.load import load_light, load_model
from shared.models.model import FORWARDS, to_transformers
from shared.models.next_token import example_losses, loss_tensor

DTYPES = (torch.float32, torch.bfloat16)
OTHER = Shape(48, 3, 3, 64, 300)


def pair(shape, dtype=torch.float32):
    """A light module with drawn weights, and what it is in transformers."""
    torch.manual_seed(0)
    light = hollow(shape)
    for parameter in light.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
        parameter.data = parameter.data.to(dtype)
    return light, light.to_transformers()


def blocks(shape, batch=3, length=29):
    numbers = torch.randint(3, shape.vocabulary, (batch, length))
    numbers[0, -4:] = 0  # as padded rows are
    return numbers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [SHAPES["byte-gpt"], OTHER])
def test_logits_are_transformers_own_to_the_bit(shape, dtype):
    light, theirs = pair(shape, dtype)
    for batch, length in ((3, 29), (1, 1), (4, shape.positions)):
        tokens = blocks(shape, batch, length)
        with torch.inference_mode():
            expected = theirs(tokens, use_cache=False).logits
            assert torch.equal(light(tokens), expected)
            for module in (light, theirs):
                assert torch.equal(FORWARDS[type(module).__name__](module, tokens), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_transformers_own_to_the_bit(dtype):
    light, theirs = pair(OTHER, dtype)
    tokens, gradients = blocks(OTHER), []
    for scores in (light(tokens), theirs(tokens, use_cache=False).logits):
        loss = torch.nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1).float(),
                                                 tokens[:, 1:].flatten())  # fmt: skip
        gradients.append(torch.autograd.grad(loss, list(light.parameters())))
    assert all(map(torch.equal, *gradients))


def test_losses_are_the_same_in_every_form():
    light, theirs = pair(OTHER)
    tokens = blocks(OTHER)
    assert torch.equal(loss_tensor(light, tokens), loss_tensor(theirs, tokens))
    assert torch.equal(example_losses(light, tokens), example_losses(theirs, tokens))


def test_parameters_have_transformers_names_order_and_ties():
    light, theirs = pair(OTHER)
    assert [*dict(light.named_parameters())] == [*dict(theirs.named_parameters())]
    assert [*light.state_dict()] == [*theirs.state_dict()]
    assert light.lm_head.weight is light.transformer.wte.weight is theirs.lm_head.weight


def test_both_share_their_parameters_before_and_after_they_are_flattened():
    light, early = pair(OTHER)
    flat, late = flatten(light).flat, light.to_transformers()
    flat += 1
    for name, parameter in light.named_parameters():
        assert parameter is early.get_parameter(name) is late.get_parameter(name)
        assert parameter.data_ptr() == early.get_parameter(name).data_ptr()


def test_a_forward_of_ones_own_on_a_block_is_called():
    """As a cut at kept activations, and a cache of frozen parts, put it there for a while."""
    light, _ = pair(OTHER)
    tokens = blocks(OTHER)
    whole = light(tokens)
    first, second = light.transformer.h[:2]
    first.forward = second.forward = lambda hidden: hidden
    assert not torch.equal(light(tokens), whole)
    del first.forward, second.forward
    assert torch.equal(light(tokens), whole)


def test_only_who_asks_for_a_light_model_gets_one():
    assert type(load_light("byte-gpt", 1).module) is LightGPT2
    assert type(load_model("byte-gpt", 1).module).__name__ == "GPT2LMHeadModel"
    other = torch.nn.Linear(2, 2)
    assert to_transformers(other) is other


def test_a_light_model_says_what_size_it_has():
    model = build("byte-gpt", 1)
    assert model.positions == 128
    assert not model.has_head
    assert "heads=4" in str(model.module)


IMPORTED_LATE = ("transformers", "pandas", "matplotlib", "datasets", "peft", "sympy")


def test_a_round_of_the_demo_imports_neither_transformers_nor_what_a_report_needs(tmp_path):
    code = f"""
import sys
import server.ledger.reader  # all that a process of a run imports first
from dandelion.engines.local import run_local
from shared.config.schema import Config
seen = []
def look(report, round_):
    if round_ == 1:
        seen.append([name for name in {IMPORTED_LATE} if name in sys.modules])
config = Config(num_rounds=2, num_clients=2, queries=1, eval_blocks=2, max_samples=20,
                output_dir={str(tmp_path)!r}, save_model=False)
run_local(config, look)
print(seen)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip().splitlines()[-1] == "[[]]", run.stderr[-2000:]
