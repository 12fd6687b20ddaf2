"""One vector holds all trainable numbers, and the module computes what it computed before."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shared.base.errors import ConfigError
from shared.base.flat import TILE, Layout, flatten

shapes = st.lists(st.lists(st.integers(1, 60), max_size=3).map(tuple), max_size=8)


class Tied(nn.Module):
    """An embedding whose matrix is the output head's too, with a buffer and odd sizes between."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(37, 61)
        self.norm = nn.LayerNorm(61)
        self.middle = nn.Linear(61, 61)
        self.head = nn.Linear(61, 37, bias=False)
        self.head.weight = self.embedding.weight
        self.scalar = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("shift", torch.ones(61))

    def forward(self, tokens):
        hidden = self.norm(self.embedding(tokens)) + self.shift * self.scalar
        return self.head(torch.tanh(self.middle(hidden)))


@pytest.fixture
def module():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Tied()


TOKENS = torch.arange(37)
NAMES = ["scalar", "embedding.weight", "norm.weight", "norm.bias", "middle.weight", "middle.bias"]


@given(shapes)
def test_tensors_start_on_tiles_and_never_overlap(sizes):
    layout = Layout.of((str(number), shape) for number, shape in enumerate(sizes))
    stop = 0
    for span, shape in zip(layout.tensors, sizes, strict=True):
        assert span.shape == shape
        assert span.start % TILE == 0
        assert stop <= span.start < stop + TILE
        stop = span.stop
    assert layout.size % TILE == 0
    assert stop <= layout.size < stop + TILE
    assert layout.parameters == sum(span.size for span in layout.tensors)


@given(shapes)
def test_clearing_the_padding_leaves_the_tensors_alone(sizes):
    layout = Layout.of((str(number), shape) for number, shape in enumerate(sizes))
    flat = torch.ones(layout.size)
    layout.clear_padding_(flat)
    assert all((view == 1).all() for view in layout.views(flat).values())
    assert flat.sum() == layout.parameters


def test_the_module_computes_what_it_computed_before(module):
    before = module(TOKENS)
    flatten(module)
    assert torch.equal(module(TOKENS), before)


def test_a_tied_parameter_lies_there_once_and_stays_tied(module):
    model = flatten(module)
    assert [span.name for span in model.layout.tensors] == NAMES
    assert model.layout.parameters == sum(p.numel() for p in module.parameters())
    assert module.head.weight is module.embedding.weight


def test_parameters_are_views_of_the_vector(module):
    model = flatten(module)
    views = model.layout.views(model.flat)
    for name, parameter in module.named_parameters():
        assert parameter.data_ptr() == views[name].data_ptr()
        assert torch.equal(parameter, views[name])
    before = module(TOKENS)
    model.flat.mul_(2)
    assert torch.equal(module.head.weight, views["embedding.weight"])
    assert not torch.equal(module(TOKENS), before)
    with torch.no_grad():
        module.scalar.fill_(9)
    assert model.flat[model.layout.tensors[0].start] == 9


def test_the_padding_is_zero(module):
    model = flatten(module)
    cleared = model.flat.clone()
    model.layout.clear_padding_(cleared)
    assert torch.equal(cleared, model.flat)
    assert model.flat.count_nonzero() <= model.layout.parameters < model.layout.size


def test_backpropagation_still_reaches_every_parameter(module):
    model = flatten(module)
    module(TOKENS).logsumexp(1).sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters()}
    vector = model.gather(gradients)
    assert vector.shape == model.flat.shape
    for name, view in model.layout.views(vector).items():
        assert torch.equal(view, gradients[name])
    assert vector.count_nonzero() == sum(g.count_nonzero() for g in gradients.values())


def test_addresses_are_those_of_the_layout(module):
    model = flatten(module)
    named = dict(module.named_parameters())
    assert model.addresses == {id(named[p.name]): p.start for p in model.layout.tensors}
    assert model.addresses[id(module.head.weight)] == model.layout.tensors[1].start


def test_a_scope_trains_what_it_names_and_freezes_the_rest(module):
    before = module(TOKENS)
    model = flatten(module, lambda name: name.startswith("norm"))
    assert [span.name for span in model.layout.tensors] == ["norm.weight", "norm.bias"]
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trained == {"norm.weight", "norm.bias"}
    assert model.flat.numel() == 2 * TILE
    model.flat.zero_()
    assert torch.equal(module.norm.weight, torch.zeros(61))
    assert not torch.equal(module(TOKENS), before)


def test_a_scope_that_names_nothing_lists_what_there_is(module):
    with pytest.raises(ConfigError, match=r"no parameter is trainable among \['embedding.weight'"):
        flatten(module, lambda name: "lora" in name)


def test_tensors_of_two_kinds_cannot_share_a_vector(module):
    module.norm.to(torch.float64)
    with pytest.raises(ConfigError, match="one dtype and device expected, got "):
        flatten(module)
    assert flatten(module, lambda name: "norm" in name).flat.dtype == torch.float64


def test_a_module_that_is_refused_stays_as_it_was(module):
    module.norm.to(torch.float64)
    pointers = [p.data_ptr() for p in module.parameters()]
    with pytest.raises(ConfigError):
        flatten(module)
    assert [p.data_ptr() for p in module.parameters()] == pointers
    assert all(p.requires_grad for p in module.parameters())


def test_a_vector_is_gathered_from_tensors_by_name(module):
    model = flatten(module)
    tensors = {span.name: torch.randn(span.shape) for span in model.layout.tensors}
    vector = model.gather(tensors)
    assert all(torch.equal(v, tensors[n]) for n, v in model.layout.views(vector).items())
    with pytest.raises(KeyError):
        model.gather({})
