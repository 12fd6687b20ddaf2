"""Adam with decoupled weight decay (AdamW), and the moments that it shares with MuDaMW.

Moments: Kingma & Ba 2015, "Adam", https://arxiv.org/abs/1412.6980, algorithm 1; the decay:
Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101. Every product, sum, root and quotient is
an operation of its own on tensors, so each is rounded once, as IEEE 754 says, on any device. Three
habits of torch are avoided for that: fused operations (lerp, addcmul, addcdiv, alpha=), division by
a Python number, which CUDA turns into a product with the reciprocal, and float32's square root,
which MKL rounds wrongly for some numbers on the CPU.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from shared.base.errors import ConfigError
from shared.base.flat import Layout
from shared.base.options import option
from shared.optimizers import OPTIMIZERS, restore_
from shared.optimizers.gradient import CHUNK, Gradient, add_scaled_


@dataclass
class Moments:
    """First and second moment of the gradients so far, corrected for their start at zero."""

    layout: Layout
    device: torch.device | str
    beta1: float
    beta2: float
    epsilon: float
    first: Tensor = field(init=False)  # (size,) float32, padding zero
    second: Tensor = field(init=False)  # (size,) float32, padding zero
    step: Tensor = field(init=False)  # () int64 on the CPU: how many gradients were absorbed

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError(f"betas in [0, 1) expected, got {self.beta1} and {self.beta2}")
        if not self.epsilon > 0:  # without it the padding would become 0 / 0
            raise ConfigError(f"epsilon above 0 expected, got {self.epsilon}")
        self.first = torch.zeros(self.layout.size, device=self.device)
        self.second = torch.zeros_like(self.first)
        self.step = torch.zeros((), dtype=torch.int64)

    def absorb(self, gradient: Gradient) -> Tensor:
        """Take one gradient in and return it as a vector (size,) that is the caller's to drop."""
        dense = torch.zeros_like(self.first)
        gradient.add_to_(dense, 1.0)
        self.layout.clear_padding_(dense)
        for part in parts(dense.numel()):
            _blend_(self.first[part], self.beta1, dense[part])
            _blend_(self.second[part], self.beta2, dense[part].square())
        self.step += 1
        return dense

    def update(self, part: slice) -> Tensor:
        """Return Adam's update over ``part``: mean / (root of mean square + epsilon)."""
        step = int(self.step)
        root = square_root(self.second[part])
        root *= 1 / math.sqrt(1 - power(self.beta2, step))
        root += self.epsilon
        return torch.mul(self.first[part], 1 / (1 - power(self.beta1, step))).div_(root)

    def state(self) -> Mapping[str, Tensor]:
        """Return both moments and the number of steps, live."""
        return {"first_moment": self.first, "second_moment": self.second, "step": self.step}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state()`` gave; SnapshotError where it does not fit."""
        restore_(self.state(), state)


@dataclass
class WithMoments:
    """What optimizers with moments share: their settings, decoupled decay, and their state."""

    exact: ClassVar[bool] = True
    additive: ClassVar[bool] = False

    layout: Layout
    device: torch.device | str = "cpu"
    _: KW_ONLY
    beta1: float = option(0.9, "decay of the running mean of the gradient", at_least=0, below=1)
    beta2: float = option(0.999, "decay of the mean of its square", at_least=0, below=1)
    epsilon: float = option(1e-8, "added to the root of that mean", key="adam-epsilon", above=0)
    weight_decay: float = option(0.0, "decoupled decay of the parameters", at_least=0)
    moments: Moments = field(init=False)

    def __post_init__(self) -> None:
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight decay of at least 0 expected, got {self.weight_decay}")
        self.moments = Moments(self.layout, self.device, self.beta1, self.beta2, self.epsilon)

    def decay_(self, flat: Tensor, learning_rate: float) -> None:
        """Shrink ``flat`` (size,) in place (Loshchilov & Hutter 2019)."""
        if self.weight_decay:
            add_scaled_(flat, flat, -learning_rate * self.weight_decay)

    def state(self) -> Mapping[str, Tensor]:
        """Return both moments and the number of steps, live."""
        return self.moments.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state()`` gave; SnapshotError where it does not fit."""
        self.moments.load_state(state)


@OPTIMIZERS.register("adam")
@dataclass
class Adam(WithMoments):
    """theta -= rate * (weight_decay * theta + mean / (root of mean square + epsilon))."""

    def step_(self, flat: Tensor, gradient: Gradient, learning_rate: float) -> None:
        """Move ``flat`` (size,) one step; the padding stays zero."""
        self.moments.absorb(gradient)
        self.decay_(flat, learning_rate)
        for part in parts(flat.numel()):
            flat[part] -= self.moments.update(part).mul_(learning_rate)


def parts(size: int) -> Iterator[slice]:
    """Cut the addresses 0 .. size into slices of CHUNK elements."""
    return (slice(start, start + CHUNK) for start in range(0, size, CHUNK))


def square_root(x: Tensor) -> Tensor:
    """Return float32's correctly rounded root of ``x`` (n,), by way of float64.

    The root of a 24-bit number lies at least 2^-50 of itself away from any midpoint of two float32
    numbers, so float64's root, its last bit (2^-52) right or wrong, rounds to the right one; all
    2,139,095,040 positive numbers were tried.
    """
    return x.double().sqrt_().float()


def power(base: float, exponent: int) -> float:
    """Return base ** exponent by squaring: IEEE products only, where libm's pow differs by host."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def _blend_(mean: Tensor, beta: float, new: Tensor) -> None:
    mean *= beta
    mean += new * (1 - beta)
