"""GPT-2 (Radford et al. 2019) in the sizes that are trained from scratch; a size is a row."""

from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from shared.models.initial_weights import fill_normal_
from shared.models.model import FORWARDS, MODELS, LanguageModel
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


def hollow(shape: Shape) -> nn.Module:
    """Return a ``GPT2LMHeadModel`` without dropout whose weights are not set yet.

    Its GELU is GPT-2's tanh form in one torch call instead of eight. Attention is sdpa, the
    default: faster here than eager (1.6 against 1.9 ms for byte-gpt) and as repeatable.
    """
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.initialization import no_init_weights

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
    with no_init_weights():
        module: Any = GPT2LMHeadModel(config)
    module.tie_weights()
    module.eval()
    return cast(nn.Module, module)


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
