"""A small GPT-2's losses by compiled code: torch's to rounding, each example's own, or none."""

import pytest
import torch
from federation import config, federate
from torch import Tensor
from torch.overrides import TorchFunctionMode

from client.app import app
from dandelion.engines.local import LocalGrid, contexts_of, merge_requests
from shared.base.flat import flatten
from shared.directions import DIRECTIONS
from shared.directions.kernels.tiles import is_supported
from shared.estimation.perturber import Perturber, scratch_size
from shared.models.gpt2 import Shape, build, hollow
from shared.models.kernels.compiled_losses import MOST_PARAMETERS, compile_losses_
from shared.models.next_token import example_losses, next_token_loss
from shared.randomness.streams import Key

pytestmark = pytest.mark.skipif(not is_supported(), reason="the kernels need AVX-512")
VOCABULARY = 259


@pytest.fixture
def module():
    """A byte-gpt whose every parameter has been moved, biases and gains included."""
    torch.manual_seed(1)
    model = build("byte-gpt", 1).module
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    compile_losses_(model)
    return model


def tokens(count: int, length: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (count, length))


def compiled(module, blocks: Tensor) -> Tensor | None:
    with torch.inference_mode():
        return module.compiled_losses(module, blocks)


def by_torch(module, blocks: Tensor) -> Tensor:
    logits = module(blocks)[:, :-1].transpose(1, 2).double()
    return torch.nn.functional.cross_entropy(logits, blocks[:, 1:], reduction="none")


@pytest.mark.parametrize("length", [2, 7, 8, 33, 64, 128])
def test_losses_are_those_of_torch_to_rounding(module, length):
    blocks = tokens(2, length)
    losses = compiled(module, blocks)
    with torch.no_grad():
        torch.testing.assert_close(
            losses[:, :-1].double(), by_torch(module, blocks), rtol=2e-6, atol=2e-6
        )
    assert not losses[:, -1].any()


def test_a_mean_loss_comes_from_compiled_code(module):
    blocks = tokens(4, 16)
    expected = compiled(module, blocks).sum(dtype=torch.float64) / (4 * 15)
    assert next_token_loss(module, blocks) == float(expected)


def test_an_example_has_the_same_bits_in_any_company(module):
    blocks = tokens(5, 24)
    together = compiled(module, blocks)
    for index in (0, 3):
        assert torch.equal(compiled(module, blocks[index : index + 1])[0], together[index])
    compiled(module, tokens(3, 128))  # longer rows lie in the same memory before
    assert torch.equal(compiled(module, blocks), together)
    assert torch.equal(example_losses(module, blocks[3:4])[0], example_losses(module, blocks)[3])


def test_a_large_loss_is_finite_and_right(module):
    module.transformer.ln_f.weight.data.mul_(400)
    blocks = tokens(2, 16)
    with torch.no_grad():
        expected = by_torch(module, blocks)
    assert expected.max() > 300
    torch.testing.assert_close(
        compiled(module, blocks)[:, :-1].double(), expected, rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_no_loss_is_finite_where_that_of_torch_is_not(module, value):
    """A model that has diverged must be seen to have diverged."""
    blocks, seen = tokens(1, 16), 0
    for name, parameter in module.named_parameters():
        last = parameter.data.view(-1)[-1:]
        before = last.clone()
        last.fill_(value)
        with torch.no_grad():
            is_lost = ~by_torch(module, blocks).isfinite()
        assert not compiled(module, blocks)[:, :-1][is_lost].isfinite().any(), name
        seen += bool(is_lost.any())
        last.copy_(before)
    assert seen > 10


def test_losses_follow_the_parameters(module):
    blocks = tokens(2, 16)
    flat = flatten(module)
    perturber = Perturber(flat, DIRECTIONS["rademacher"](flat.layout))
    before = next_token_loss(module, blocks)
    with perturber.at(Key(1, 2, 3, 4), 0.05):
        moved = next_token_loss(module, blocks)
        module.compiled_losses, kept = None, module.compiled_losses
        assert moved == pytest.approx(next_token_loss(module, blocks), abs=2e-6)
        module.compiled_losses = kept
    assert abs(moved - before) > 1e-3
    assert next_token_loss(module, blocks) == before


class Doubling(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def _with_hook(module):
    module.transformer.h[1].mlp.register_forward_hook(lambda *_: None)


def _with_own_forward(module):
    block = module.transformer.h[0]
    block.forward = block.forward


def _with_other_part(module):
    module.transformer.h[0].mlp = torch.nn.Identity()


def _with_untied_output(module):
    module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.detach().clone())


def _with_bfloat16(module):
    module.to(torch.bfloat16)


@pytest.mark.parametrize(
    "change",
    [_with_hook, _with_own_forward, _with_other_part, _with_untied_output, _with_bfloat16],
)
def test_a_module_that_computes_something_else_is_left_to_torch(module, change):
    assert compiled(module, tokens(1, 8)) is not None
    change(module)
    assert compiled(module, tokens(1, 8)) is None


def test_torch_computes_where_it_is_asked_for_more(module):
    blocks = tokens(1, 8)
    assert module.compiled_losses(module, blocks) is None  # a gradient may be wanted
    with torch.inference_mode(), Doubling():  # as a perturber that replaces parameters on the way
        assert module.compiled_losses(module, blocks) is None
    assert compiled(module, blocks.int()) is None
    assert compiled(module, tokens(1, 129)) is None
    assert compiled(module, tokens(2, 16)[:, ::2]) is None


@pytest.mark.parametrize("wrong", [-1, VOCABULARY])
def test_a_token_outside_the_vocabulary_is_an_error_as_without(module, wrong):
    blocks = tokens(2, 8)
    blocks[1, 7] = wrong
    with pytest.raises(IndexError):
        next_token_loss(module, blocks)


def test_models_that_a_perturber_takes_in_parts_have_no_compiled_losses():
    assert scratch_size(MOST_PARAMETERS, 1) == MOST_PARAMETERS
    for shape in (Shape(64, 5, 4, 64), Shape(48, 1, 3, 64, 259), Shape(64, 1, 8, 64, 259)):
        module = hollow(shape)
        compile_losses_(module)
        assert module.compiled_losses is None


def test_a_run_has_the_same_digest_with_any_number_of_threads(tmp_path):
    one = federate(config(tmp_path, "one"))
    assert federate(config(tmp_path, "two", threads=2)).digest == one.digest


def test_merged_sites_have_the_same_compiled_losses_as_each_alone(tmp_path):
    alone = federate(config(tmp_path, "alone"))
    merged = config(tmp_path, "merged", merge_clients=True)
    together = federate(merged, LocalGrid(app, nodes := contexts_of(merged), merge_requests(nodes)))
    torch.testing.assert_close(together.flat, alone.flat, rtol=0, atol=1e-4)


def test_torch_gives_the_same_run_to_rounding_and_another_digest(tmp_path):
    ours = federate(config(tmp_path, "ours"))
    theirs = federate(config(tmp_path, "theirs", kernels="torch"))
    assert ours.digest != theirs.digest
    torch.testing.assert_close(ours.flat, theirs.flat, rtol=0, atol=1e-4)
