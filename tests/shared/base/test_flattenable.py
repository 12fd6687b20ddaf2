"""What would give wrong numbers once it is flattened is refused by name; all else stays right."""

import pytest
import torch
from torch import nn

from shared.base.errors import ConfigError
from shared.base.flat import flatten


class Holder(nn.Module):
    """A linear layer, and whatever ``add`` keeps beside it."""

    def __init__(self, add=lambda module: None):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        add(self)


def keep(name, make):
    return lambda module: setattr(module, name, make(module.layer.weight))


def shared_parameter(module):
    module.twin = nn.Parameter(module.layer.weight.data)


def shared_buffer(module):
    module.register_buffer("mean", module.layer.weight.data[:2])


SHARED = {
    "a view": (keep("head", lambda w: w[:2]), "head"),
    "the data": (keep("head", lambda w: w.data), "head"),
    "a transposed view": (keep("head", lambda w: w.detach().t()), "head"),
    "a view in a list": (keep("heads", lambda w: [w[:2], w[2:4]]), r"heads\[0\]"),
    "a view in a dictionary": (keep("heads", lambda w: {"a": w[1]}), r"heads\[a\]"),
    "a parameter of the same storage": (shared_parameter, "twin"),
    "a buffer of the same storage": (shared_buffer, "mean"),
}


@pytest.mark.parametrize("name", SHARED)
def test_what_shares_memory_with_a_parameter_is_refused_by_both_names(name):
    add, other = SHARED[name]
    with pytest.raises(ConfigError, match="shares memory with") as refused:
        flatten(Holder(add))
    refused.match(other)
    refused.match("layer.weight")


def test_a_frozen_parameter_may_have_views():
    model = flatten(Holder(keep("head", lambda w: w[:2])), lambda name: name == "layer.bias")
    assert [span.name for span in model.layout.tensors] == ["layer.bias"]


def test_columns_of_one_storage_that_do_not_meet_are_moved_apart():
    whole = torch.randn(4, 6)
    module = nn.ParameterList([nn.Parameter(whole[:, :3]), nn.Parameter(whole[:, 3:])])
    model = flatten(module)
    values = [model.flat[s.start : s.stop].view(s.shape) for s in model.layout.tensors]
    assert torch.equal(torch.cat(values, 1), whole)


def test_a_module_can_be_flattened_again():
    module = Holder()
    first = flatten(module).flat.clone()
    assert torch.equal(flatten(module).flat, first)


def test_one_parameter_under_two_names_stays_one():
    module = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    module["b"].weight = module["a"].weight
    assert flatten(module).layout.parameters == 16 + 4 + 4


def test_a_parameter_without_elements_has_no_address():
    module = Holder(lambda m: setattr(m, "none", nn.Parameter(torch.zeros(3, 0))))
    assert {span.name for span in flatten(module).layout.tensors} == {"layer.weight", "layer.bias"}


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_what_writes_its_parameters_when_read_is_refused(kind):
    module = nn.Sequential(kind(5, 4, max_norm=1.0))
    with pytest.raises(ConfigError, match=r"module '0': max_norm = 1\.0 writes the parameters"):
        flatten(module)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module_is_refused():
    with pytest.raises(ConfigError, match=r"module '0': .* scripted"):
        flatten(nn.Sequential(torch.jit.script(nn.Linear(4, 4))))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_module_is_refused_however_it_was_compiled():
    whole, inner = torch.compile(nn.Linear(4, 4), backend="eager"), nn.Sequential(nn.Linear(4, 4))
    inner[0].compile(backend="eager")
    for module in (whole, inner):
        with pytest.raises(ConfigError, match=r"compiled: leave torch\.compile out"):
            flatten(module)
