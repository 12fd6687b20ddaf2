"""Frozen modules are computed once for a batch; the losses have the same bits."""

import copy
from collections import Counter

import pytest
import torch
from small_models import bert
from torch import nn

from shared.base.flat import flatten
from shared.directions import DIRECTIONS
from shared.estimation.activation_cache import MOST_MISSES, FrozenPrefixCache
from shared.estimation.perturber import Perturber
from shared.randomness.streams import Key

IDS = torch.arange(14).view(2, 7) % 16


class Loss:
    """A module, some of its parameters trained, and its loss at perturbed points."""

    def __init__(self, module, chosen, call=lambda module: module(IDS)[0]):
        self.module, self.call = module.eval(), call
        self.model = flatten(module, chosen)
        self.perturber = Perturber(self.model, DIRECTIONS["rademacher"](self.model.layout))
        self.frozen, self.computed = FrozenPrefixCache(self.model), Counter()
        for part in self.frozen._modules:
            part.module.forward = self._count(part.module, part.module.forward)

    def _count(self, part, forward):
        name = next(name for name, module in self.module.named_modules() if module is part)

        def counted(*args, **named):
            self.computed[name] += 1
            return forward(*args, **named)

        return counted

    @torch.inference_mode()
    def at(self, number, scale=0.05):
        with self.perturber.at(Key(7, 1, 0, number), scale):
            return self.call(self.module).double().square().mean().item()


def last_layer(name):
    return name.startswith(("encoder.layer.1.output", "pooler"))


def test_modules_before_trained_parameters_are_computed_once_and_losses_are_the_same():
    """Twice in the first round: an output is cached after the same input came again."""
    loss = Loss(bert(), last_layer)
    plain = [loss.at(k) for k in range(6)]
    every = Counter(loss.computed)
    assert every == dict.fromkeys(every, 6)
    assert {"embeddings", "encoder.layer.0", "encoder.layer.1.attention"} <= set(every)
    for times in (2, 1, 1):
        loss.computed.clear()
        with loss.frozen.reuse():
            assert [loss.at(k) for k in range(6)] == plain
        assert loss.computed == dict.fromkeys(every, times)
        assert loss.frozen._results.used == 0


def test_modules_behind_trained_parameters_are_always_computed_and_soon_not_checked():
    loss = Loss(bert(), lambda name: name.startswith("embeddings"))
    plain = [loss.at(k) for k in range(6)]
    assert set(loss.computed) == {"encoder", "pooler"}
    with loss.frozen.reuse():
        assert [loss.at(k) for k in range(6)] == plain
        assert loss.frozen._results.used == 0
    assert loss.computed == dict.fromkeys(["encoder", "pooler"], 12)
    with loss.frozen.reuse():
        for k in range(MOST_MISSES):
            loss.at(6 + k)
    assert [part.misses for part in loss.frozen._modules] == [MOST_MISSES, MOST_MISSES]
    before = vars(loss.module.encoder)["forward"]
    with loss.frozen.reuse():
        assert vars(loss.module.encoder)["forward"] is before


def test_other_batches_are_computed_anew_and_do_not_end_the_caching():
    loss = Loss(bert(), last_layer)
    batches = [torch.roll(IDS, k, 1) for k in range(7)]
    with loss.frozen.reuse():
        for batch in batches:
            loss.call = lambda module, batch=batch: module(batch)[0]
            losses = [loss.at(1, scale) for scale in (0.05, -0.05)]
            alone = Loss(bert(), last_layer, loss.call)
            assert losses == [alone.at(1, scale) for scale in (0.05, -0.05)]
    assert loss.computed["encoder.layer.0"] == len(batches) + 1


def test_several_batches_are_cached_side_by_side():
    loss = Loss(bert(), last_layer)
    batches = [torch.roll(IDS, k, 1) for k in range(5)]

    def pieces(module):
        return torch.cat([module(batch)[0] for batch in batches])

    loss.call = pieces
    plain = [loss.at(k) for k in range(4)]
    loss.computed.clear()
    with loss.frozen.reuse():
        assert [loss.at(k) for k in range(4)] == plain
    assert loss.computed["encoder.layer.0"] == 2 * len(batches)


def test_without_room_the_oldest_outputs_are_evicted_and_no_bit_changes():
    loss = Loss(bert(), last_layer)
    plain = [loss.at(k) for k in range(8)]
    loss.frozen._results._most = 3 * 2 * 7 * 16 * 4  # the results of three parts
    with loss.frozen.reuse():
        for _ in range(2):
            assert [loss.at(k) for k in range(8)] == plain
            assert 0 < loss.frozen._results.used <= loss.frozen._results._most
    loss.frozen._results._most = 10
    with loss.frozen.reuse():
        assert [loss.at(k) for k in range(8)] == plain
        assert loss.frozen._results.used == 0


def test_outputs_that_fit_are_cached_even_if_not_all_fit():
    """One module too many must not evict every other in turn."""
    loss = Loss(bert(), last_layer)
    loss.frozen._results._most = 3 * 2 * 7 * 16 * 4
    with loss.frozen.reuse():
        loss.at(0)
        loss.at(1)
        loss.computed.clear()
        for k in range(6):
            loss.at(2 + k)
    assert sorted(loss.computed.values())[0] == 6
    assert 0 < len(loss.computed) < len(loss.frozen._modules)


def test_a_lone_embedding_is_looked_up_every_time():
    loss = Loss(bert(), lambda name: "LayerNorm" in name or "bias" in name)
    assert not any(isinstance(part.module, nn.Embedding) for part in loss.frozen._modules)
    whole = Loss(bert(), lambda name: not name.startswith("embeddings"))
    assert [type(part.module).__name__ for part in whole.frozen._modules] == ["BertEmbeddings"]


def test_a_write_into_an_output_does_not_reach_the_cache():
    def spoils(module):
        hidden = module[0](torch.ones(2, 4))
        out = module[1](hidden)
        hidden.zero_()
        return out

    loss = Loss(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), lambda n: n[0] == "1", spoils)
    plain = [loss.at(k) for k in range(4)]
    with loss.frozen.reuse():
        assert [loss.at(k) for k in range(4)] == plain
    assert loss.computed["0"] == 4 + 2


def test_a_write_into_an_input_is_noticed():
    given = torch.ones(2, 4)
    loss = Loss(
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), lambda n: n[0] == "1", lambda m: m(given)
    )
    with loss.frozen.reuse():
        before = loss.at(1)
        assert loss.at(1) == loss.at(1) == before
        given.add_(1)
        assert loss.at(1) != before
        given.sub_(1)
        assert loss.at(1) == before
    assert loss.computed["0"] == 3


def test_gradients_and_dropout_are_never_cached():
    module = bert()
    loss = Loss(module, last_layer)
    with loss.frozen.reuse():
        first, second = (module(IDS)[0].sum() for _ in range(2))
        assert first.requires_grad
        assert torch.autograd.grad(second, module.pooler.dense.weight, allow_unused=True)
        module.train()
        with torch.inference_mode():
            assert not torch.equal(module(IDS)[0], module(IDS)[0])


def test_the_module_is_restored_afterwards_also_if_it_raised():
    module = bert()
    loss = Loss(module, last_layer)
    before = {name: vars(part).get("forward") for name, part in module.named_modules()}
    loss.call = lambda module: module(IDS)["nothing"]
    for _ in range(2):
        with pytest.raises(KeyError), loss.frozen.reuse():
            loss.at(1)
    assert {name: vars(part).get("forward") for name, part in module.named_modules()} == before
    assert loss.frozen._results.used == 0
    own = FrozenPrefixCache(flatten(fresh := bert(), last_layer))
    with own.reuse():
        copy.copy(fresh)
    assert not any("forward" in vars(part) for part in fresh.modules())


def test_an_input_with_hidden_state_is_not_cached():
    class Cache:
        pass

    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer, self.cache = Inner(), nn.Linear(4, 2), Cache()

        def forward(self, x):
            return self.outer(self.inner(x, self.cache))

    class Inner(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)

        def forward(self, x, cache):
            cache.calls = getattr(cache, "calls", 0) + 1
            return super().forward(x) * cache.calls

    loss = Loss(Takes(), lambda name: name.startswith("outer"), lambda m: m(torch.ones(1, 4)))
    with loss.frozen.reuse():
        assert len({loss.at(1) for _ in range(5)}) == 5


def test_a_module_with_two_addresses_is_restored_afterwards():
    shared, last = nn.Linear(4, 4), nn.Linear(4, 2)
    module = nn.ModuleDict({"a": nn.ModuleList([shared]), "b": nn.ModuleList([shared, last])})
    own = FrozenPrefixCache(flatten(module, lambda name: name.startswith("b.1")))
    assert len(own._modules) == 1
    for _ in range(2):
        with own.reuse():
            assert "forward" in vars(shared)
        assert "forward" not in vars(shared)
