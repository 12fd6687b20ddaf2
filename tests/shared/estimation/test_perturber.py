"""A loss at θ + εz equals the loss with θ perturbed in place; θ stays as it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812

from shared.base.flat import flatten
from shared.directions import DIRECTIONS
from shared.estimation.blockwise import rows_of_block
from shared.estimation.perturber import Perturber
from shared.randomness.streams import Key

KEY, SCALE = Key(7, 3, 0, 1), 0.05
TINY = 64  # elements of scratch: every matrix goes block by block
ROOMY = 1 << 22  # everything fits: the parameters become views of the scratch


class Mixed(nn.Module):
    """What models are made of besides linear layers, each parameter handed over in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 16, padding_idx=0)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.memory = nn.LSTM(16, 8, batch_first=True)
        self.filter = nn.Conv1d(8, 12, 3, padding=1)
        self.norm = nn.LayerNorm(12)
        self.plain = nn.Parameter(torch.randn(12, 24) / 4)
        self.turned = nn.Parameter(torch.randn(16, 24) / 4)
        self.pair = nn.ParameterList([torch.randn(5, 16), torch.randn(3, 16)])

    def forward(self, ids):
        x = self.table(ids)
        x = x + self.attention(x, x, x)[0] + self.encoder(x)
        x, _ = self.memory(x)
        x = self.norm(self.filter(x.transpose(1, 2)).transpose(1, 2))
        x = torch.addmm(self.turned[:, 0].sum().expand(24), x.reshape(-1, 12), self.plain)
        x = (x @ self.turned.T).tanh()
        return F.linear(x, torch.cat(list(self.pair)))


def mixed():
    return Mixed(), torch.arange(2 * 7).view(2, 7) % 40, lambda module, x: module(x)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config), torch.arange(14).view(2, 7), lambda m, x: m(x).logits


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
    return LlamaForCausalLM(config), torch.arange(14).view(2, 7), lambda m, x: m(x).logits


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=24, max_position_embeddings=16)  # fmt: skip
    return (
        BertForSequenceClassification(config),
        torch.arange(14).view(2, 7),
        lambda m, x: m(x).logits,
    )


MODELS = {"mixed": mixed, "gpt2": gpt2, "llama": llama, "bert": bert}


def built(name, only=None):
    torch.manual_seed(1)
    module, x, outputs = MODELS[name]()
    model = flatten(module.eval(), lambda parameter: only is None or parameter == only)

    def loss():
        with torch.inference_mode():
            out = outputs(module, x).double()
            return float((out * torch.arange(out.numel()).view(out.shape).cos()).sum())

    return model, loss


def in_place(model, loss, directions):
    saved = model.flat.clone()
    directions.add_to_(model.flat, [KEY], [SCALE])
    try:
        return loss()
    finally:
        model.flat.copy_(saved)


@pytest.mark.parametrize("scratch", [TINY, ROOMY])
@pytest.mark.parametrize("family", ["rademacher", "hadamard", "gaussian", "lowrank"])
@pytest.mark.parametrize("name", MODELS)
def test_all_parameters_perturbed_give_the_loss_in_place(name, family, scratch):
    model, loss = built(name)
    directions = DIRECTIONS[family](model.layout)
    before, plain = model.flat.clone(), loss()
    with Perturber(model, directions, scratch).at(KEY, SCALE):
        measured = loss()
    assert measured == pytest.approx(in_place(model, loss, directions), rel=1e-5, abs=1e-5)
    assert abs(measured - plain) > 1e-3
    assert torch.equal(model.flat, before)


@pytest.mark.parametrize("name", MODELS)
def test_each_parameter_alone_perturbed_gives_the_loss_in_place(name):
    for only in [span.name for span in built(name)[0].layout.tensors]:
        model, loss = built(name, only)
        directions = DIRECTIONS["rademacher"](model.layout)
        perturber = Perturber(model, directions, TINY)
        perturber._pairs.clear()  # the torch function mode, however small the tensor
        with perturber.at(KEY, SCALE):
            measured = loss()
        expected = in_place(model, loss, directions)
        assert measured == pytest.approx(expected, rel=1e-5, abs=1e-5), only


@pytest.mark.parametrize("scratch", [TINY, ROOMY])
def test_parameters_are_untouched_where_the_model_raises(scratch):
    model, loss = built("gpt2")
    before, plain = model.flat.clone(), loss()
    perturber = Perturber(model, DIRECTIONS["rademacher"](model.layout), scratch)

    def broken():
        with perturber.at(KEY, SCALE):
            loss()
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        broken()
    assert torch.equal(model.flat, before)
    assert loss() == plain


def test_what_is_asked_about_a_parameter_costs_no_perturbation():
    model, _ = built("gpt2")
    weight = model.module.transformer.wte.weight
    directions = Counting(DIRECTIONS["rademacher"](model.layout))
    with Perturber(model, directions, TINY).at(KEY, SCALE):
        about = weight.shape, weight.dtype, weight.device, weight.size(0), weight.dim()
        assert about == (torch.Size([50, 16]), torch.float32, torch.device("cpu"), 50, 2)
        assert directions.sizes == []
        assert not torch.equal(
            weight.data, model.layout.views(model.flat)["transformer.wte.weight"]
        )
        assert weight.T.shape == (16, 50)


class Counting:
    """Notes how many elements are drawn at once."""

    exact = pointwise = True

    def __init__(self, inner):
        self._inner, self.sizes = inner, []

    def add_to_(self, flat, keys, coefficients, start=0):
        self._inner.add_to_(flat, keys, coefficients, start)

    def perturb_(self, out, source, start, key, scale):
        self.sizes.append(out.numel())
        self._inner.perturb_(out, source, start, key, scale)

    def add_rows_(self, rows, ids, start, key, scale):
        self._inner.add_rows_(rows, ids, start, key, scale)


def test_large_matrices_never_exist_as_a_whole():
    model, loss = built("gpt2")
    directions = Counting(DIRECTIONS["rademacher"](model.layout))
    with Perturber(model, directions, 128).at(KEY, SCALE):
        loss()
    assert directions.sizes
    assert max(directions.sizes) <= 128
    assert sum(directions.sizes) > 128 * 10


def test_a_tied_weight_is_the_same_at_both_ends():
    model, loss = built("gpt2", only="transformer.wte.weight")
    assert model.module.lm_head.weight is model.module.transformer.wte.weight
    directions = DIRECTIONS["rademacher"](model.layout)
    with Perturber(model, directions, 128).at(KEY, SCALE):
        measured = loss()
    assert measured == pytest.approx(in_place(model, loss, directions), rel=1e-5)


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 300),
    room=st.integers(300, 5000),
)
@settings(max_examples=200, deadline=None)
def test_blocks_fit_the_room_and_make_progress(height, width, room):
    rows = rows_of_block(height, width, room)
    assert 1 <= rows <= room // width


@given(height=st.integers(1, 70), width=st.integers(1, 70), batch=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_products_of_any_shape_equal_those_in_place(height, width, batch):
    torch.manual_seed(height * 100 + width)
    module = nn.ParameterDict({"a": torch.randn(height, width), "b": torch.randn(width, height)})
    model = flatten(module)
    directions = DIRECTIONS["rademacher"](model.layout)
    x = torch.randn(batch, width)

    def outputs():
        with torch.inference_mode():
            return torch.cat([F.linear(x, module["a"]), x @ module["b"]])

    with Perturber(model, directions, 80).at(KEY, SCALE):
        measured = outputs()
    directions.add_to_(model.flat, [KEY], [SCALE])
    assert torch.allclose(measured, outputs(), rtol=1e-4, atol=1e-4)


def test_points_do_not_add_up():
    model, loss = built("gpt2")
    perturber = Perturber(model, DIRECTIONS["rademacher"](model.layout), ROOMY)
    with perturber.at(KEY, SCALE):
        measured = loss()
        with pytest.raises(RuntimeError, match="already"), perturber.at(KEY, SCALE):
            pass
        assert loss() == measured


def test_the_address_of_a_perturbed_parameter_is_refused():
    model, _ = built("gpt2")
    perturber = Perturber(model, DIRECTIONS["rademacher"](model.layout), TINY)
    with perturber.at(KEY, SCALE), pytest.raises(RuntimeError, match="no address"):
        model.module.transformer.wte.weight.data_ptr()


class WithEmpty(nn.Module):
    """A parameter without elements before a large one, which then has the same flat address."""

    def __init__(self):
        super().__init__()
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.large = nn.Linear(96, 96)

    def forward(self, x):
        return self.large(x).square().mean() + self.empty.sum()


@pytest.mark.parametrize("scratch", [TINY, ROOMY, None])
@pytest.mark.parametrize("autocast", [False, True])
def test_nothing_of_the_parameters_is_missed(scratch, autocast):
    torch.manual_seed(1)
    module, x = WithEmpty(), torch.randn(4, 96)
    model = flatten(module)
    directions = DIRECTIONS["rademacher"](model.layout)
    perturber = Perturber(model, directions, scratch)
    before = model.flat.clone()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        module(x)  # fills autocast's cache with casts of the parameters
        measured = []
        for scale in (SCALE, -SCALE):
            with perturber.at(KEY, scale):
                measured.append(float(module(x)))
        for scale, loss in zip((SCALE, -SCALE), measured, strict=True):
            directions.perturb_(model.flat, before, 0, KEY, scale)
            torch.clear_autocast_cache()
            assert loss == pytest.approx(float(module(x)), rel=1e-6)
            model.flat.copy_(before)
        torch.clear_autocast_cache()
    assert measured[0] != measured[1]


@pytest.mark.parametrize("family", ["rademacher", "hadamard", "gaussian", "lowrank"])
def test_a_model_of_real_widths_gives_the_loss_in_place(family):
    """Wide enough for products of blocks and copies of small tensors, at the default scratch."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(vocab_size=2500, n_positions=16, n_embd=256, n_layer=1, n_head=4)
    module = GPT2LMHeadModel(config).eval()
    model, ids = flatten(module), torch.arange(22).view(2, 11)
    directions = DIRECTIONS[family](model.layout)

    def loss():
        with torch.inference_mode():
            return float(module(ids).logits.double().sin().sum())

    perturber = Perturber(model, directions)
    assert bool(perturber._small.copies) is directions.pointwise
    with perturber.at(KEY, 1e-3):
        measured = loss()
    assert measured == pytest.approx(in_place_at(model, loss, directions, 1e-3), rel=1e-4, abs=1e-2)


def in_place_at(model, loss, directions, scale):
    saved = model.flat.clone()
    directions.add_to_(model.flat, [KEY], [scale])
    try:
        return loss()
    finally:
        model.flat.copy_(saved)
