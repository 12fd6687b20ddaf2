"""Standardisation of features by statistics that travel in the settings of a run.

Every site must compute with the same numbers. So the mean and the deviation of each channel are
computed once, from inputs that the server has (its held-out texts; their classes are not read), and
become the setting ``feature-scaling`` as text. The digest of the untrained model covers them.
"""

import base64
import binascii
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.base.errors import ConfigError

AUTO, NONE = "auto", "none"
PREFIX = "std1:"  # format of the text: base64 of all means in float32, then all factors in bfloat16
CHANNEL_BYTES = 6
SMALLEST = 1e-6  # deviation below which a channel is constant: it is only centred


@dataclass(frozen=True)
class Scaling:
    """Means (f,) and factors (f,), float32: a feature x becomes (x - mean) * factor."""

    mean: Tensor
    factor: Tensor

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
        return cls(mean.float(), factor.bfloat16().float())

    def encode(self) -> str:
        """The text that ``decode`` reads."""
        means = self.mean.numpy().astype("<f4").tobytes()
        factors = self.factor.bfloat16().view(torch.int16).numpy().astype("<i2").tobytes()
        return PREFIX + base64.b64encode(means + factors).decode()

    @classmethod
    def decode(cls, text: str, count: int) -> "Scaling":
        """Read the setting ``feature-scaling`` for ``count`` features.

        Raises:
            ConfigError: it is no such text, or of another number of features.
        """
        if text == NONE:
            return cls.identity(count)
        if text == AUTO:
            raise ConfigError(
                f"feature-scaling = {AUTO} becomes numbers before the settings go to the sites: "
                "start with 'dandelion run' or 'dandelion server run', set it to "
                f"{NONE}, or to the text in the config.toml of a run on the same features"
            )
        if not text.startswith(PREFIX):
            raise ConfigError(
                f"feature-scaling: {NONE}, or a text that begins with {PREFIX!r} as dandelion "
                f"computes it, expected, got {text[:40]!r}"
            )
        try:
            data = bytearray(base64.b64decode(text.removeprefix(PREFIX), validate=True))
        except binascii.Error as error:
            raise ConfigError(f"feature-scaling: no base64 ({error})") from error
        if len(data) != CHANNEL_BYTES * count:
            raise ConfigError(
                f"feature-scaling: numbers of {count} features expected, got "
                f"{len(data) / CHANNEL_BYTES:g}; were they computed for other features? Set "
                f"feature-scaling = {AUTO}"
            )
        mean = torch.frombuffer(data, dtype=torch.float32, count=count).clone()
        factor = torch.frombuffer(data, dtype=torch.bfloat16, offset=4 * count).float()
        if not (torch.isfinite(mean).all() and torch.isfinite(factor).all()):
            raise ConfigError("feature-scaling: finite numbers expected")
        return cls(mean, factor)

    def apply(self, features: Tensor) -> Tensor:
        """Standardise features (B, f)."""
        return (features - self.mean) * self.factor
