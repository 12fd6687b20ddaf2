"""From an entry to a gradient, and from a gradient to a step."""

from dataclasses import dataclass, field
from math import frexp, ldexp, prod, sqrt
from typing import Any

import numpy as np

from .entries import Entry
from .vector import Directions, Span, initial, layout_of
from .words import F32, TILE, Array, Floats, LayoutError, words
from .xxh3 import xxh3_128


@dataclass
class State:
    """Parameters and optimizer state of a round."""

    flat: Floats  # (size,); with bfloat16 every number is one of bfloat16
    round: int = 0
    steps: int = 0
    first: Floats = field(init=False)  # the velocity of sgd, the first moment of the others
    second: Floats = field(init=False)
    dense: Floats | None = None  # the last dense gradient

    def __post_init__(self) -> None:
        self.first, self.second = np.zeros_like(self.flat), np.zeros_like(self.flat)


@dataclass(frozen=True)
class Run:
    """What the settings of a run decide; it makes the step of each entry."""

    settings: dict[str, Any]
    spans: list[Span]
    directions: Directions

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "Run":
        """The run with these settings."""
        spans = layout_of(settings["model"], settings["scope"])
        rank = int(settings["direction-rank"])
        return cls(settings, spans, Directions(spans, settings["directions"], rank))

    def start(self) -> State:
        """The initial model."""
        flat = initial(self.spans, self.settings["seed"])
        if self.settings["dtype"] == "bfloat16":  # to nearest: ties to even
            bits = flat.view(np.uint32)
            bits += np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
            bits &= np.uint32(0xFFFF0000)
        return State(flat)

    def clear_(self, flat: Floats) -> None:
        """Set the padding to zero."""
        for span in self.spans:
            flat[span.padding] = 0

    def step_(self, state: State, entry: Entry) -> None:
        """Make the step of an entry that is no rewind."""
        if entry.payload:
            state.dense = self._decode_dense(entry.payload)
        optimizer = {"sgd": self._sgd_, "adam": self._adam_, "mudamw": self._adam_}
        optimizer[self.settings["optimizer"]](state, entry)
        if self.settings["dtype"] == "bfloat16":
            self._round_(state.flat, entry.round)
        self.clear_(state.flat)

    def digest(self, state: State) -> bytes:
        """The digest of the parameters."""
        if self.settings["dtype"] == "bfloat16":
            return xxh3_128((state.flat.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes())
        return xxh3_128(state.flat.astype("<f4").tobytes())

    def _add_gradient_(self, state: State, entry: Entry, target: Floats, scale: float) -> None:
        if entry.guide:
            if state.dense is None:
                raise LayoutError(f"round {entry.round}: no dense gradient came before")
            target += state.dense * F32(scale * entry.guide)
        eps, queries = self.settings["eps"], self.settings["queries"]
        for slot, differences in entry.slots:
            for number, difference in enumerate(differences.astype(np.float64)):
                coefficient = float(difference) / (2 * eps * queries)
                key = (self.settings["seed"], entry.round, slot, number)
                self.directions.add_(target, key, scale * coefficient)

    def _decode_dense(self, payload: bytes) -> Floats:
        """The vector (size,) in an encoded gradient."""
        name, body = payload[:4], payload[16:]
        if name not in (b"f32\0", b"bf16", b"int8", b"topk"):
            raise LayoutError(f"a gradient in a codec of the page expected, got {name!r}")
        if name == b"f32\0":
            return self._lay_out(np.frombuffer(body, "<f4"))
        if name == b"bf16":
            return self._lay_out((np.frombuffer(body, "<u2").astype(np.uint32) << 16).view(F32))
        if name == b"topk":
            return self._lay_out(self._decode_topk(body))
        tiles = len(self._zeros()) // TILE
        levels = self._lay_out(np.frombuffer(body, np.int8, offset=4 * tiles).astype(F32))
        scales = np.frombuffer(body, "<f4", tiles)
        result: Floats = (levels.reshape(tiles, TILE) * scales[:, None]).ravel()
        return result

    def _lay_out(self, values: Array) -> Floats:
        """Numbers of parameters (d,) as a flat vector (size,)."""
        flat, at = self._zeros(), 0
        for span in self.spans:
            size = prod(span.shape)
            flat[span.part] = values[at : at + size]
            at += size
        return flat

    def _decode_topk(self, body: bytes) -> Floats:
        """All numbers (d,), of which the body has a few."""
        parameters = sum(prod(span.shape) for span in self.spans)
        count = max(1, round(self.settings["topk-fraction"] * parameters))
        width = (parameters // count).bit_length() - 1
        lower = bits_of(body[4 * count : 4 * count - (-count * width // 8)])[: count * width]
        upper = np.flatnonzero(bits_of(body[4 * count - (-count * width // 8) :]))
        addresses = (upper - np.arange(count)) << width
        addresses += lower.reshape(count, width) @ (1 << np.arange(width))
        values = np.zeros(parameters, F32)
        values[addresses] = np.frombuffer(body, "<f4", count)
        return values

    def _zeros(self) -> Floats:
        return np.zeros(self.spans[-1].padding.stop, F32)

    def _sgd_(self, state: State, entry: Entry) -> None:
        flat, rate = state.flat, entry.rate
        momentum, decay = self.settings["momentum"], self.settings["weight-decay"]
        if not momentum:
            if decay:
                flat += flat * F32(-rate * decay)
            self._add_gradient_(state, entry, flat, -rate)
            return
        state.first *= F32(momentum)
        self._add_gradient_(state, entry, state.first, 1.0)
        self.clear_(state.first)
        if decay:
            state.first += flat * F32(decay)
        flat += state.first * F32(-rate)

    def _adam_(self, state: State, entry: Entry) -> None:
        """Adam's step, and MuDaMW's."""
        gradient = self._zeros()
        self._add_gradient_(state, entry, gradient, 1.0)
        self.clear_(gradient)
        blend_(state.first, self.settings["beta1"], gradient)
        blend_(state.second, self.settings["beta2"], gradient * gradient)
        state.steps += 1
        if decay := self.settings["weight-decay"]:
            state.flat += state.flat * F32(-entry.rate * decay)
        update = self._adam_update(state)
        if self.settings["optimizer"] == "mudamw":
            for span in self.spans:
                own = self._mudamw_update(span, update[span.part], gradient[span.part])
                state.flat[span.part] -= own * F32(entry.rate)
        else:
            state.flat -= update * F32(entry.rate)

    def _adam_update(self, state: State) -> Floats:
        root = np.sqrt(state.second.astype(np.float64)).astype(F32)
        root *= F32(1 / sqrt(1 - power(self.settings["beta2"], state.steps)))
        root += F32(self.settings["adam-epsilon"])
        corrected = state.first * F32(1 / (1 - power(self.settings["beta1"], state.steps)))
        result: Floats = corrected / root
        return result

    def _mudamw_update(self, span: Span, update: Floats, gradient: Floats) -> Floats:
        if len(span.shape) == 2:
            update = orthogonalise(update.reshape(span.shape)) * F32(0.2 * sqrt(max(span.shape)))
            update = update.ravel()
        if self.settings["cautious"]:
            kept = np.sign(update) * np.sign(gradient) > 0
            update = update * kept * F32(len(update) / (int(kept.sum()) + 1))
        return update

    def _round_(self, flat: Floats, round_: int) -> None:
        """Round stochastically to bfloat16, in place."""
        drawn = words((self.settings["seed"], (1 << 30) + round_, 0, 0), np.arange(len(flat) // 8))
        halves = np.stack([drawn & np.uint64(0xFFFF), drawn >> np.uint64(16)], 2)
        bits = flat.view(np.uint32)
        bits += np.where(np.isfinite(flat), halves.ravel(), 0).astype(np.uint32)
        bits &= np.uint32(0xFFFF0000)


def bits_of(data: bytes) -> Array:
    """The bits (8n,) of n bytes, each byte from its lowest."""
    return np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").astype(np.int64)


def blend_(moment: Floats, beta: float, new: Floats) -> None:
    """Let a running mean take in a new value."""
    moment *= F32(beta)
    moment += new * F32(1 - beta)


def power(base: float, exponent: int) -> float:
    """Base ** exponent by squaring."""
    result = 1.0
    while exponent:
        if exponent % 2:
            result *= base
        base, exponent = base * base, exponent // 2
    return result


def orthogonalise(matrix: Floats) -> Floats:
    """A matrix with its singular values moved near 1."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalise(matrix.T).T
    peak = float(np.abs(matrix).max())
    if not peak:
        return matrix * F32(0)
    exponent = frexp(peak)[1] - 16
    units = np.ceil(np.abs(matrix).astype(np.float64) * ldexp(1.0, -exponent)).astype(np.int64)
    norm = ldexp(sqrt(int((units * units).sum())), exponent)
    x = grid(matrix.astype(np.float64) * (1 / norm))
    for _ in range(5):
        gram = grid(x @ x.T)
        curve = grid(gram * -4.7750 + (gram @ gram) * 2.0315)
        x = grid(curve @ x + x * 3.4445)
    result: Floats = x.astype(F32)
    return result


def grid(x: Array) -> Array:
    """Round to multiples of 2**-25."""
    return np.rint(x * 2.0**25) * 2.0**-25
