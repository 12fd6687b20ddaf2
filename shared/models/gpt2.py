"""GPT-2 (Radford et al. 2019) in the sizes that are trained from scratch; a size is a row."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import sqrt
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrize

from shared.models.initial_weights import fill_normal_
from shared.models.model import FORWARDS, MODELS, LanguageModel, TokenLosses
from shared.models.packaged import BPE, gpt2_tokenizer
from shared.models.tokenizers import ByteTokenizer
from shared.randomness.streams import model_weights_key

BYTES = ByteTokenizer().size


@dataclass(frozen=True, slots=True)
class Shape:
    """What sets the size of a GPT-2."""

    width: int
    layers: int
    heads: int
    positions: int  # tokens of the longest block
    vocabulary: int = BPE

    @property
    def parameters(self) -> int:
        """The number of parameters; the output matrix is the embedding."""
        block = 12 * self.width**2 + 13 * self.width
        return (self.vocabulary + self.positions + 2) * self.width + self.layers * block


SHAPES = {  # parameters
    "byte-gpt": Shape(64, 2, 4, 128, BYTES),  # 124,864
    "20M": Shape(256, 6, 4, 512),  # 17.7 M
    "200M": Shape(768, 12, 12, 1024),  # 124 M, GPT-2 small
    "500M": Shape(1024, 24, 16, 1024),  # 355 M, GPT-2 medium
    "800M": Shape(1536, 28, 24, 1024),  # 872 M
    "1B": Shape(1600, 32, 25, 1024),  # 1,066 M
}


def build(name: str, seed: int) -> LanguageModel:
    """Build a size with the same initial weights on every machine, a function of the seed alone."""
    shape = SHAPES[name]
    module = hollow(shape)
    initialise_(module, seed, shape.layers)
    bytes_ = shape.vocabulary == BYTES
    return LanguageModel(name, module, ByteTokenizer() if bytes_ else gpt2_tokenizer())


def register_size(name: str, shape: Shape) -> None:
    """Make a size known by name: what a row of ``SHAPES`` does, for packages that are installed.

    Raises:
        ValueError: another model has the name.
    """
    MODELS.register(name)(partial(build, name))
    SHAPES[name] = shape


for _name, _shape in [*SHAPES.items()]:
    register_size(_name, _shape)


def hollow(shape: Shape) -> "LightGPT2":
    """Return a model of this shape in evaluation mode whose weights are not set yet."""
    return LightGPT2(shape).eval()


def initialise_(module: nn.Module, seed: int, layers: int) -> None:
    """Set GPT-2's initial weights: deviation 0.02, less where layers add up; gains 1, biases 0."""
    for number, (name, parameter) in enumerate(module.named_parameters()):
        weights = parameter.detach()
        if name.endswith("bias"):
            weights.zero_()
        elif ".ln_" in name:
            weights.fill_(1)
        else:
            std = 0.02 / sqrt(2 * layers) if name.endswith("c_proj.weight") else 0.02
            fill_normal_(weights.view(-1).numpy(), model_weights_key(seed, number), std)


class Affine(nn.Module):
    """Weight (n, m) and bias (m,) of x ↦ xW + b, as GPT-2 stores them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))


class LightAttention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj = Affine(width, 3 * width), Affine(width, width)
        self.heads, self.size, self.scale = heads, width // heads, (width // heads) ** -0.5

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what each of hidden states (B, T, C) takes from those before it."""
        batch, length, width = hidden.shape
        qkv = _affine(self.c_attn, hidden.view(-1, width))
        parts = qkv.view(batch, length, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)  # each (B, heads, T, size)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return _affine(self.c_proj, mixed.transpose(1, 2).reshape(-1, width)).view(hidden.shape)

    def extra_repr(self) -> str:
        """The number of heads, which no parameter's shape says."""
        return f"heads={self.heads}"


class LightMLP(nn.Module):
    """A block's perceptron of two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Affine(width, 4 * width), Affine(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what each of hidden states (B, T, C) becomes."""
        inner = _affine(self.c_fc, hidden.view(-1, hidden.shape[-1]))
        return _affine(self.c_proj, F.gelu(inner, approximate="tanh")).view(hidden.shape)


class LightBlock(nn.Module):
    """A block of GPT-2: attention, then the perceptron, each after a norm and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), LightAttention(width, heads)
        self.ln_2, self.mlp = nn.LayerNorm(width), LightMLP(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the next hidden states (B, T, C)."""
        hidden = hidden + self.attn(self.ln_1(hidden))
        return hidden + cast(Tensor, self.mlp(self.ln_2(hidden)))


def _affine(layer: Affine, rows: Tensor) -> Tensor:
    return torch.addmm(layer.bias, rows, layer.weight)


class LightBody(nn.Module):
    """Embeddings, blocks and the last norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.wte = _embedding(shape.vocabulary, shape.width)
        self.wpe = _embedding(shape.positions, shape.width)
        self.h = nn.ModuleList(LightBlock(shape.width, shape.heads) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.width)

    def forward(self, blocks: Tensor) -> Tensor:
        """Return the last hidden states (B, T, C) of blocks (B, T)."""
        hidden = self.wte(blocks) + self.wpe(torch.arange(blocks.shape[1], device=blocks.device))
        for block in self.h:
            hidden = block(hidden)
        last: Tensor = self.ln_f(hidden)
        return last


class LightGPT2(nn.Module):
    """GPT-2 in plain torch: transformers' ``GPT2LMHeadModel`` to the bit, without its import.

    That import takes longer than ten rounds of a small model. Names and order of the parameters,
    logits and gradients are the same. GELU is GPT-2's tanh form in one torch call instead of eight.
    Attention is sdpa: faster here than eager (1.6 against 1.9 ms for byte-gpt) and as repeatable.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.compiled_losses: TokenLosses | None = None  # asked first for losses
        self.transformer = LightBody(shape)
        self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=False, device="meta")
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, blocks: Tensor) -> Tensor:
        """Return the logits (B, T, V) of blocks (B, T)."""
        scores: Tensor = self.lm_head(self.transformer(blocks))
        return scores

    @property
    def config(self) -> SimpleNamespace:
        """What is read of a model's configuration, under transformers' names."""
        return SimpleNamespace(
            vocab_size=self.shape.vocabulary, max_position_embeddings=self.shape.positions
        )

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding of tokens."""
        return self.transformer.wte

    def get_output_embeddings(self) -> nn.Linear:
        """The output matrix, which is the embedding."""
        return self.lm_head

    def to_transformers(self) -> Any:  # noqa: ANN401
        """A ``GPT2LMHeadModel`` without dropout that has the very parameters of this module.

        A parameter of which only a mask's numbers are trained has its present numbers there.
        """
        module = _transformers_module(self.shape)
        for name, parameter in _whole_parameters(self):
            path, _, last = name.rpartition(".")
            setattr(module.get_submodule(path), last, parameter)
        module.lm_head.weight = module.transformer.wte.weight
        return module.train(self.training)


def _whole_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by name, but the tied one of the output; those with a mask as they are now."""
    for path, part in module.named_modules():
        if path == "lm_head" or "parametrizations" in path.split("."):
            continue
        for name, parameter in part.named_parameters(recurse=False):
            yield f"{path}.{name}", parameter
        if parametrize.is_parametrized(part):
            for name in getattr(part, "parametrizations"):  # noqa: B009  (torch does not declare it)
                yield f"{path}.{name}", nn.Parameter(getattr(part, name).detach(), False)


def _embedding(count: int, width: int) -> nn.Embedding:
    """An embedding whose weights are not drawn: torch's generator stays where it is."""
    return nn.Embedding(count, width, _weight=torch.empty(count, width))


def _transformers_module(shape: Shape) -> Any:  # noqa: ANN401
    """A ``GPT2LMHeadModel`` on the device ``meta``."""
    from transformers import GPT2Config, GPT2LMHeadModel

    end = ByteTokenizer().end if shape.vocabulary == BYTES else shape.vocabulary - 1
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.positions,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
    )
    with torch.device("meta"):
        return GPT2LMHeadModel(config)


@FORWARDS.register("LightGPT2")
def light_logits(module: LightGPT2, blocks: Tensor) -> Tensor:
    """Return the logits (B, T, V) of blocks (B, T)."""
    scores: Tensor = module(blocks)
    return scores


@FORWARDS.register("GPT2LMHeadModel")
def logits(module: Any, blocks: Tensor) -> Tensor:  # noqa: ANN401
    """Return the logits (B, T, V) of blocks (B, T): the module's own to the bit, without padding.

    transformers' forward makes 129 torch calls for two layers, this one 76, and none depends on
    data. It calls the module's layers, so adapters and hooks on them work.
    """
    body = module.transformer
    positions = torch.arange(blocks.shape[1], device=blocks.device)
    hidden = body.wte(blocks) + body.wpe(positions)  # (B, T, C)
    for block in body.h:
        if "forward" in vars(block):  # replaced for a while, as by a cut or a cache
            hidden = block(hidden)
            continue
        hidden = hidden + _attend(block.attn, block.ln_1(hidden))
        mlp = block.mlp
        hidden = hidden + mlp.c_proj(mlp.act(mlp.c_fc(block.ln_2(hidden))))
    scores: Tensor = module.lm_head(body.ln_f(hidden))
    return scores


def _attend(attention: Any, hidden: Tensor) -> Tensor:  # noqa: ANN401
    """Causal self-attention of hidden states (B, T, C)."""
    heads = (*hidden.shape[:2], 3, attention.num_heads, attention.head_dim)
    q, k, v = attention.c_attn(hidden).view(heads).permute(2, 0, 3, 1, 4)  # (B, heads, T, head)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=attention.scaling)
    out: Tensor = attention.c_proj(mixed.transpose(1, 2).reshape(hidden.shape))
    return out
