"""The flat vector of a run: its tensors, its initial weights, and directions over it."""

import re
from dataclasses import dataclass
from math import prod, sqrt

import numpy as np

from .words import F32, TILE, Floats, Key, LayoutError, bits_set, signs, up_to_tile, words

SHAPES = {  # width, blocks, positions, vocabulary
    "byte-gpt": (64, 2, 128, 259),
    "20M": (256, 6, 512, 50257),
    "200M": (768, 12, 1024, 50257),
    "500M": (1024, 24, 1024, 50257),
    "800M": (1536, 28, 1024, 50257),
    "1B": (1600, 32, 1024, 50257),
}


@dataclass(frozen=True)
class Span:
    """One tensor of the flat vector, and the deviation of its initial weights, or their value."""

    number: int  # among all tensors of the model
    shape: tuple[int, ...]
    start: int
    deviation: float
    value: float

    @property
    def part(self) -> slice:
        """Its addresses."""
        return slice(self.start, self.start + prod(self.shape))

    @property
    def padding(self) -> slice:
        """The addresses after it, up to the next tile."""
        return slice(self.part.stop, up_to_tile(self.part.stop))


Row = tuple[str, tuple[int, ...], float, float]  # name, shape, deviation, value


def tensors_of(model: str) -> list[Row]:
    """All tensors of a model in order."""
    c, blocks, positions, vocabulary = SHAPES[model]
    small = 0.02 / sqrt(2 * blocks)
    rows: list[Row] = [
        ("transformer.wte.weight", (vocabulary, c), 0.02, 0.0),
        ("transformer.wpe.weight", (positions, c), 0.02, 0.0),
    ]
    for block in range(blocks):
        name = f"transformer.h.{block}."
        rows += [*norm(name + "ln_1", c), *linear(name + "attn.c_attn", (c, 3 * c), 0.02)]
        rows += [*linear(name + "attn.c_proj", (c, c), small), *norm(name + "ln_2", c)]
        rows += linear(name + "mlp.c_fc", (c, 4 * c), 0.02)
        rows += linear(name + "mlp.c_proj", (4 * c, c), small)
    return [*rows, *norm("transformer.ln_f", c)]


def norm(name: str, width: int) -> list[Row]:
    """The two tensors of a layer norm."""
    return [(f"{name}.weight", (width,), 0.0, 1.0), (f"{name}.bias", (width,), 0.0, 0.0)]


def linear(name: str, shape: tuple[int, int], deviation: float) -> list[Row]:
    """The two tensors of a linear layer."""
    return [(f"{name}.weight", shape, deviation, 0.0), (f"{name}.bias", shape[1:], 0.0, 0.0)]


def trained(name: str, scope: str, blocks: int) -> bool:
    """Whether a scope trains the tensor of this name.

    Raises:
        LayoutError: the scope is not on the page.
    """
    few = name.endswith("bias") or ".ln_" in name
    last = rf"\.h\.{blocks - 1}\."
    rules = {"full": "", "head": "wte", "reduced": rf"wte|{last}(ln_2|mlp)"}
    if scope == "bias":
        return few
    if scope.startswith("last:"):
        number, _, bias = scope.removeprefix("last:").partition(":")
        block = re.search(r"\.h\.(\d+)\.", name)
        late = int(block[1]) >= blocks - int(number) if block else ".ln_f." in name
        return late and (few or not bias)
    if scope not in rules and not scope.startswith("regex:"):
        raise LayoutError(f"scope: one that is on the page expected, got {scope}")
    return re.search(rules.get(scope, scope.removeprefix("regex:")), name) is not None


def layout_of(model: str, scope: str) -> list[Span]:
    """The trained tensors of a model in order."""
    spans, start, blocks = [], 0, SHAPES[model][1]
    for number, (name, shape, deviation, value) in enumerate(tensors_of(model)):
        if trained(name, scope, blocks):
            spans.append(Span(number, shape, start, deviation, value))
            start = up_to_tile(start + prod(shape))
    return spans


def initial(spans: list[Span], seed: int) -> Floats:
    """The initial weights (size,) in float32."""
    flat = np.zeros(spans[-1].padding.stop, F32)
    for span in spans:
        flat[span.part] = span.value
        if span.deviation:
            size = prod(span.shape)
            drawn = words((seed, 0, 1 << 31, span.number), np.arange(-(-size // 2)))
            halves = (drawn & np.uint64(0xFFFF)) + (drawn >> np.uint64(16))
            sums = (halves[:, ::2] + halves[:, 1::2]).astype(np.int64).ravel()[:size]
            scale = F32(span.deviation / sqrt(4 * (2**32 - 1) / 12))
            flat[span.part] = (sums - 131070).astype(F32) * scale
    return flat


@dataclass(frozen=True)
class Directions:
    """One family over a layout; ``rank`` matters to ``lowrank``."""

    spans: list[Span]
    family: str
    rank: int

    def add_(self, flat: Floats, key: Key, scale: float) -> None:
        """Add scale * z(key) to a vector (size,)."""
        if self.family == "rademacher":
            flat += F32(scale) * signs(key, 0, len(flat))
        elif self.family == "hadamard":
            self._add_row_(flat, key, scale)
        else:
            self._add_products_(flat, key, scale)

    def _add_row_(self, flat: Floats, key: Key, scale: float) -> None:
        seed, round_word, slot_word, row = key
        shared = (seed, (1 << 31) + round_word, slot_word, 1 << 31)
        tile, element = divmod(len(flat) + row, TILE)
        own = signs(shared, tile * TILE, TILE)[element]
        common = signs(shared, 0, len(flat))
        order = 1 << (sum(prod(span.shape) for span in self.spans) - 1).bit_length()
        first = 0
        for span in self.spans:
            numbers = np.arange(first, first + prod(span.shape))
            walsh = 1 - 2 * (bits_set(row % order & numbers) % 2).astype(F32)
            flat[span.part] += F32(scale) * (own * common[span.part] * walsh)
            first += len(numbers)

    def _add_products_(self, flat: Floats, key: Key, scale: float) -> None:
        address = 0
        for span in self.spans:
            counts = (
                [self.rank * n for n in span.shape] if len(span.shape) == 2 else [span.shape[0]]
            )
            drawn = []
            for count in counts:
                drawn.append(signs(key, address, count))
                address = up_to_tile(address + count)
            self._add_part_(flat[span.part].reshape(span.shape), drawn, scale)

    def _add_part_(self, tensor: Floats, drawn: list[Floats], scale: float) -> None:
        if tensor.ndim == 1:
            tensor += F32(scale) * drawn[0]
            return
        rows, columns = (each.reshape(self.rank, -1) for each in drawn)
        for a, b in zip(rows, columns, strict=True):
            tensor += F32(scale / sqrt(self.rank)) * (a[:, None] * b[None])
