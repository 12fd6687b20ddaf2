"""Rebuilds the parameters of every round of a run from its ledger, and compares the digests.

``python rebuild.py runs/first/ledger.sqlite`` needs Python 3.11 and numpy, nothing of Dandelion. It
was written from docs/reference/ledger-layout.md, whose sections its parts follow.
"""

import re
import sqlite3
import struct
import sys
import tomllib
from dataclasses import dataclass, field
from math import frexp, ldexp, prod, sqrt
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]
Array = np.ndarray[Any, Any]
TILE = 2048
F32 = np.float32


class LayoutError(Exception):
    """The file is no ledger of this layout, or its run has a part that is not on the page."""


# --- Tables -------------------------------------------------------------------------------------

DEFAULTS: dict[str, Any] = {
    "seed": 1, "model": "byte-gpt", "dtype": "float32", "queries": 16, "eps": 0.001,
    "directions": "rademacher", "direction-rank": 1, "optimizer": "sgd", "momentum": 0.0,
    "weight-decay": 0.0, "beta1": 0.9, "beta2": 0.999, "adam-epsilon": 1e-8, "cautious": False,
    "mode": "zo", "scope": "full", "init-from": "", "topk-fraction": 0.01,
}  # fmt: skip
KNOWN = {
    "dtype": ("float32", "bfloat16"),
    "directions": ("rademacher", "lowrank"),
    "optimizer": ("sgd", "adam", "mudamw"),
    "init-from": ("",),
}


@dataclass(frozen=True)
class Entry:
    """One round as the ledger has it."""

    round: int
    rate: float
    slots: list[tuple[int, Array]]
    guide: float
    payload: bytes
    back_to: int | None

    @property
    def follows(self) -> int:
        """The round whose parameters it changes."""
        return self.round - 1 if self.back_to is None else self.back_to


def decode(data: bytes) -> Entry:
    """Read an entry's bytes.

    Raises:
        LayoutError: they are no entry, or its dense gradient was dropped.
    """
    magic, slots, round_, numbers, rate = struct.unpack_from("<HHIId", data)
    if crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise LayoutError(f"round {round_}: the checksum of the entry does not fit")
    if magic == 0xDE04:
        return Entry(round_, rate, [], 0.0, b"", numbers)
    if magic not in (0xDE01, 0xDE02):
        raise LayoutError(f"round {round_}: its dense gradient was dropped, or magic {magic:#x}")
    at, read = 20, []
    for _ in range(slots):
        (slot,) = struct.unpack_from("<I", data, at)
        read.append((slot, np.frombuffer(data, "<f4", numbers, at + 4)))
        at += 4 + 4 * numbers
    guide, payload = 0.0, b""
    if magic == 0xDE02:
        guide, length = struct.unpack_from("<dI", data, at)
        payload = data[at + 12 : at + 12 + length]
    return Entry(round_, rate, read, guide, payload, None)


def read_ledger(path: Path) -> tuple[dict[str, Any], list[Entry], dict[int, bytes]]:
    """Settings, entries by round, and recorded digests of a ledger.

    Raises:
        LayoutError: the file is no ledger, or a setting has a value that is not on the page.
    """
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        ((text,),) = connection.execute("SELECT value FROM head WHERE key = 'config'")
        entries = connection.execute("SELECT payload FROM entries ORDER BY round").fetchall()
        digests = dict(connection.execute("SELECT round, digest FROM digests"))
    except (sqlite3.Error, ValueError) as error:
        raise LayoutError(f"{path}: {error}") from error
    finally:
        connection.close()
    recorded = {key: value for key, value in tomllib.loads(text.decode()).items() if value != ""}
    settings = {**DEFAULTS, **recorded}
    known = {**KNOWN, "model": tuple(SHAPES)}
    for key, values in known.items():
        if settings[key] not in values:
            raise LayoutError(f"{key}: one of {', '.join(values)} expected, got {settings[key]}")
    if settings["mode"] == "fedavg":
        settings |= {"optimizer": "sgd", "momentum": 0.0, "weight-decay": 0.0}
    return settings, [decode(payload) for (payload,) in entries], digests


# --- Random words -------------------------------------------------------------------------------

Key = tuple[int, int, int, int]  # seed, round word, slot word, index word


def words(key: Key, blocks: Array) -> Array:
    """The four words (n, 4) of these blocks (n,) of a key: Philox4x32-10."""
    seed, round_word, slot_word, index_word = key
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0 = blocks.astype(np.uint64)
    c1, c2, c3 = (np.full(len(blocks), w, np.uint64) for w in (index_word, round_word, slot_word))
    k0, k1 = seed % 2**32, seed >> 32
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & low
        c2, c3 = (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.stack([c0, c1, c2, c3], 1)


# --- The flat vector ----------------------------------------------------------------------------

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


def up_to_tile(address: int) -> int:
    """The next multiple of a tile."""
    return -(-address // TILE) * TILE


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


# --- Directions ---------------------------------------------------------------------------------


def signs(key: Key, first: int, count: int) -> Floats:
    """The signs (count,) from address ``first``, the start of a tile."""
    tiles = up_to_tile(count) // TILE
    drawn = words(key, np.arange(16 * tiles) + first // TILE * 16)
    lanes = drawn.reshape(tiles, 16, 4).transpose(0, 2, 1).reshape(tiles, 1, 64)
    bits = (lanes >> np.arange(32, dtype=np.uint64)[None, :, None]) & np.uint64(1)
    return (1 - 2 * bits.astype(F32)).ravel()[:count]


@dataclass(frozen=True)
class Directions:
    """One family over a layout; ``rank`` is 0 for ``rademacher``."""

    spans: list[Span]
    rank: int

    def add_(self, flat: Floats, key: Key, scale: float) -> None:
        """Add scale * z(key) to a vector (size,)."""
        if not self.rank:
            flat += F32(scale) * signs(key, 0, len(flat))
            return
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


# --- From an entry to a gradient, and from a gradient to a step ----------------------------------


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
        rank = int(settings["direction-rank"]) if settings["directions"] == "lowrank" else 0
        return cls(settings, spans, Directions(spans, rank))

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


# --- Digests ------------------------------------------------------------------------------------

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
PRIMES32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
PRIMES64 = (
    0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9,
    0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5,
)  # fmt: skip
STRIPE, BLOCK = 64, 1024
MASK = 2**64 - 1


def xxh3_128(data: bytes) -> bytes:
    """XXH3-128 of more than 240 bytes, seed 0, in canonical order (Collet, xxHash 0.8)."""
    if len(data) <= 240:
        raise LayoutError(f"more than 240 bytes expected, got {len(data)}")
    lanes = [PRIMES32[2], *PRIMES64[:4], PRIMES32[1], PRIMES64[4], PRIMES32[0]]
    state = np.array(lanes, np.uint64)
    whole = (len(data) - 1) // BLOCK
    sums = accumulate(
        np.frombuffer(data, "<u8", whole * BLOCK // 8).reshape(whole, BLOCK // STRIPE, 8), 0
    )
    scramble = np.frombuffer(SECRET, "<u8", 8, len(SECRET) - STRIPE)
    for block in sums:
        state = state + block
        state = (state ^ (state >> np.uint64(47)) ^ scramble) * np.uint64(PRIMES32[0])
    rest = data[whole * BLOCK : (len(data) - 1) // STRIPE * STRIPE]
    state = state + accumulate(np.frombuffer(rest, "<u8").reshape(1, len(rest) // STRIPE, 8), 0)[0]
    last = np.frombuffer(data[-STRIPE:], "<u8").reshape(1, 1, 8)
    state = state + accumulate(last, len(SECRET) - STRIPE - 7)[0]
    low = merge(state, 11, len(data) * PRIMES64[0] & MASK)
    high = merge(state, len(SECRET) - STRIPE - 11, ~(len(data) * PRIMES64[1]) & MASK)
    return struct.pack(">QQ", high, low)


def accumulate(stripes: Array, offset: int) -> Array:
    """The sums (blocks, 8) that stripes (blocks, n, 8) add to the state."""
    count = stripes.shape[1]
    secret = [np.frombuffer(SECRET, "<u8", 8, offset + 8 * number) for number in range(count)]
    keyed = stripes ^ np.array(secret, np.uint64).reshape(1, count, 8)
    products = (keyed & np.uint64(0xFFFFFFFF)) * (keyed >> np.uint64(32))
    swapped = stripes.reshape(len(stripes), count, 4, 2)[..., ::-1].reshape(stripes.shape)
    result: Array = (products + swapped).sum(1, dtype=np.uint64)
    return result


def merge(state: Array, offset: int, start: int) -> int:
    """Fold the eight numbers of the state into one."""
    for pair in range(4):
        secret = struct.unpack_from("<QQ", SECRET, offset + 16 * pair)
        product = (int(state[2 * pair]) ^ secret[0]) * (int(state[2 * pair + 1]) ^ secret[1])
        start += (product & MASK) ^ (product >> 64)
    start &= MASK
    start = (start ^ start >> 37) * 0x165667919E3779F9 & MASK
    return start ^ start >> 32


# --- Rewinds, and all rounds ---------------------------------------------------------------------


def reach(run: Run, entries: list[Entry], to: int) -> State:
    """The state of a round, from the initial model along the rounds that lead there."""
    path: list[Entry] = []
    while to:
        entry = entries[to - 1]
        path, to = [*path, entry], entry.follows
    state = run.start()
    for entry in reversed(path):
        take_(run, state, entry)
    return state


def take_(run: Run, state: State, entry: Entry) -> None:
    """Go on by one entry."""
    if entry.back_to is None:
        run.step_(state, entry)
    state.round = entry.round


def rebuild(path: Path) -> list[tuple[int, bytes, bytes | None]]:
    """Round, rebuilt digest and recorded digest of the initial model and of every round.

    Raises:
        LayoutError: the file is no ledger, or its run has a part that is not on the page.
    """
    settings, entries, recorded = read_ledger(path)
    run = Run.of(settings)
    state = run.start()
    rows = [(0, run.digest(state), recorded.get(0))]
    for entry in entries:
        if entry.follows != state.round:
            state = reach(run, entries, entry.follows)
        take_(run, state, entry)
        rows.append((entry.round, run.digest(state), recorded.get(entry.round)))
    return rows


def main(arguments: list[str]) -> int:
    """Print what was compared; return 0 if all recorded digests are those of the parameters."""
    if len(arguments) != 1:
        print("usage: python rebuild.py LEDGER", file=sys.stderr)
        return 2
    try:
        rows = rebuild(Path(arguments[0]))
    except LayoutError as error:
        print(error, file=sys.stderr)
        return 2
    compared = [(number, ours, theirs) for number, ours, theirs in rows if theirs is not None]
    for number, ours, theirs in compared:
        if ours != theirs:
            print(f"round {number}: {theirs.hex()} is recorded, {ours.hex()} was rebuilt")
            return 1
    print(f"{len(rows) - 1} rounds rebuilt, {len(compared)} digests compared: all equal")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
