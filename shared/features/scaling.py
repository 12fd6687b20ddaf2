"""Standardisation of features by statistics that travel in the settings of a run.

Every site must compute with the same numbers. So the mean and the deviation of each channel are
computed once, from inputs that the server has (its held-out texts; their classes are not read), and
become the setting ``feature-scaling`` as text. The digest of the untrained model covers them.

With ``whiten:K`` the standardised features are also expressed by their K main components (PCA),
each of deviation 1. A readout of those needs fewer directions than one of all channels, and its
loss bends alike along all of them, so a step of one length suits all.

A channel that hardly varies in the server's inputs is divided by next to nothing. Where a site has
an example in which it does vary, that example is hundreds of times as long as others, its slopes
hide those of all others, and a step bends its loss by the square of that. So a vector longer than
LONGEST times the usual, which is the square root of its width, is shortened to that.
"""

import base64
import binascii
from dataclasses import dataclass, replace
from math import inf, isfinite

import torch
from torch import Tensor

from shared.base.errors import ConfigError

AUTO, NONE = "auto", "none"
WHITEN = "whiten:"  # and the number of components
PREFIX = "std2:"  # format of the text: base64 of all means in float32, then all factors in bfloat16
WHITE_PREFIX = "pca2:"  # K, a colon, base64 of the same, K scales, and int8 numbers
FORMER = "std1:", "pca1:"  # the same of a former version, in which no vector was shortened
CHANNEL_BYTES = 6
SCALE_BYTES = 4  # of a component
INT8 = 127
NO_COMPONENT = 1e-9  # share of the variance below which there is no further component
MOST_DIGITS = 6
LONGEST = 3.0  # of some 12,000 reviews none is longer than 2.2, of MNIST's pictures 1 in 1,000
SMALLEST = 1e-6  # deviation below which a channel is constant: it is only centred


@dataclass(frozen=True)
class Scaling:
    """Means (f,) and factors (f,), float32: a feature x becomes (x - mean) * factor.

    With a basis (f, k) the result is multiplied by it. A vector is at most ``longest`` times as
    long as the square root of its width.
    """

    mean: Tensor
    factor: Tensor
    basis: Tensor | None = None
    longest: float = inf

    @property
    def width(self) -> int:
        """Length of a feature vector as the readout gets it."""
        return len(self.mean) if self.basis is None else self.basis.shape[1]

    @classmethod
    def identity(cls, count: int) -> "Scaling":
        """The scaling of ``count`` features that changes none."""
        return cls(torch.zeros(count), torch.ones(count))

    @classmethod
    def of(cls, features: Tensor) -> "Scaling":
        """Mean and inverse deviation of each channel of features (n, f), as text keeps them.

        Raises:
            ConfigError: there are fewer than two examples.
        """
        if len(features) < 2:
            raise ConfigError(
                f"feature-scaling {AUTO}: two held-out examples or more expected, got "
                f"{len(features)}; set feature-scaling = {NONE}"
            )
        values = features.double()
        mean, deviation = values.mean(0), values.std(0)
        factor = torch.where(deviation < SMALLEST, 1.0, 1.0 / deviation.clamp(min=SMALLEST))
        return cls(mean.float(), factor.bfloat16().float(), longest=LONGEST)

    @classmethod
    def whiten(cls, features: Tensor, components: int) -> "Scaling":
        """The same, and a basis in which so many main components have deviation 1.

        Raises:
            ConfigError: features (n, f) have fewer components, or there are too few examples.
        """
        scaling = cls.of(features)
        values = ((features - scaling.mean) * scaling.factor).double()
        _, sizes, rows = torch.linalg.svd(values, full_matrices=False)
        variances = sizes.square() / len(values)
        most = int((variances > NO_COMPONENT * variances.sum()).sum())
        if not 1 <= components <= most:
            raise ConfigError(
                f"feature-scaling = {WHITEN}K: K from 1 to {most} expected, the components of the "
                f"server's {len(values)} texts, got {components}"
            )
        basis = (rows[:components] / variances[:components, None].sqrt()).T
        scales = basis.abs().amax(0).float() / INT8
        return replace(scaling, basis=(basis / scales).round().float() * scales)

    def encode(self) -> str:
        """The text that ``decode`` reads."""
        means = self.mean.numpy().astype("<f4").tobytes()
        factors = self.factor.bfloat16().view(torch.int16).numpy().astype("<i2").tobytes()
        prefix, white_prefix = (PREFIX, WHITE_PREFIX) if isfinite(self.longest) else FORMER
        if self.basis is None:
            return prefix + base64.b64encode(means + factors).decode()
        scales = self.basis.abs().amax(0) / INT8
        steps = (self.basis / scales).round().to(torch.int8).contiguous()
        data = means + factors + scales.numpy().astype("<f4").tobytes() + steps.numpy().tobytes()
        return f"{white_prefix}{len(scales)}:{base64.b64encode(data).decode()}"

    @classmethod
    def decode(cls, text: str, count: int) -> "Scaling":
        """Read the setting ``feature-scaling`` for ``count`` features.

        Raises:
            ConfigError: it is no such text, or of another number of features.
        """
        if text == NONE:
            return cls.identity(count)
        if is_computed(text):
            raise ConfigError(
                f"feature-scaling = {text} becomes numbers before the settings go to the sites: "
                "start with 'dandelion run' or 'dandelion server run', set it to "
                f"{NONE}, or to the text in the config.toml of a run on the same features"
            )
        if not text.startswith((PREFIX, WHITE_PREFIX, *FORMER)):
            raise ConfigError(
                f"feature-scaling: {AUTO}, {NONE}, {WHITEN}K, or a text that begins with "
                f"{PREFIX!r} or {WHITE_PREFIX!r} as dandelion computes it, expected, got "
                f"{text[:40]!r}"
            )
        _, *number, numbers = text.split(":")
        components = whole_number(number[0]) if number else 0
        try:
            data = bytearray(base64.b64decode(numbers, validate=True))
        except binascii.Error as error:
            raise ConfigError(f"feature-scaling: no base64 ({error})") from error
        if len(data) != CHANNEL_BYTES * count + components * (SCALE_BYTES + count):
            raise ConfigError(
                f"feature-scaling: numbers of {count} features expected, got {len(data)} bytes; "
                f"were they computed for other features? Set feature-scaling = {AUTO}"
            )
        longest = inf if text.startswith(FORMER) else LONGEST
        return replace(_unpack(data, count, components), longest=longest)

    def apply(self, features: Tensor) -> Tensor:
        """Standardise features (B, f), and shorten those that are too long."""
        scaled = (features - self.mean) * self.factor
        if self.basis is not None:
            scaled = scaled @ self.basis
        return scaled if self.longest == inf else shorten(scaled, self.longest)


def shorten(features: Tensor, longest: float) -> Tensor:
    """Features (B, k) of at most ``longest`` times √k; shorter ones stay as they are, bit for bit.

    Lengths are sums in float64, so that none overflows.
    """
    most = longest * features.shape[-1] ** 0.5
    return torch.renorm(features.double(), 2, 0, most).to(features.dtype)


def is_computed(text: str) -> bool:
    """Whether the setting ``feature-scaling`` becomes numbers before a run starts."""
    return text == AUTO or text.startswith(WHITEN)


def components_of(text: str) -> int:
    """The K of ``whiten:K``.

    Raises:
        ConfigError: it is no whole number.
    """
    return whole_number(text.removeprefix(WHITEN))


def whole_number(text: str) -> int:
    """A number of components.

    Raises:
        ConfigError: it is none.
    """
    if not (text.isdecimal() and text.isascii()) or len(text) > MOST_DIGITS:
        raise ConfigError(f"feature-scaling: {WHITEN}K for a number K expected, got {text[:40]!r}")
    return int(text)


def _unpack(data: bytearray, count: int, components: int) -> Scaling:
    """Numbers of ``count`` features and some components, or none, as ``encode`` writes them."""
    mean = torch.frombuffer(data, dtype=torch.float32, count=count).clone()
    factor = torch.frombuffer(data, dtype=torch.bfloat16, offset=4 * count, count=count).float()
    basis, at = None, CHANNEL_BYTES * count
    if components:
        scales = torch.frombuffer(bytearray(data[at:]), dtype=torch.float32, count=components)
        steps = torch.frombuffer(data, dtype=torch.int8, offset=at + SCALE_BYTES * components)
        basis = steps.view(count, components).float() * scales
    numbers = [mean, factor, *([] if basis is None else [basis])]
    if not all(torch.isfinite(each).all() for each in numbers):
        raise ConfigError("feature-scaling: finite numbers expected")
    return Scaling(mean, factor, basis)
