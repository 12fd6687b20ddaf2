"""An affine map of kept features, added to a model's class logits: few numbers, exact slopes.

The map (W, b) starts at zero, so the model starts as what it was. Its logits are linear in W and b.
The gradient of a batch therefore needs no backpropagation: it is the mean of (p - y) ⊗ (x, 1), for
probabilities p, class y and features x. With a causal model this is an offset on the label words'
rows of the output matrix; with an encoder it is a linear probe on pooled hidden states.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from shared.base.errors import ConfigError, DataError
from shared.features.scaling import NONE, Scaling
from shared.models.model import READOUT

WEIGHT, BIAS = f"{READOUT}.weight", f"{READOUT}.bias"
TENSORS_FILE, ABOUT_FILE = f"{READOUT}.safetensors", f"{READOUT}.json"


class Readout(nn.Module):
    """Class logits: those that the model gives, plus W (k, f) times features plus b (k,)."""

    def __init__(self, features: str, classes: int, scaling: Scaling) -> None:
        super().__init__()
        self.features, self.classes = features, classes
        self.weight = nn.Parameter(torch.zeros(classes, scaling.width))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.register_buffer("mean", scaling.mean)
        self.register_buffer("factor", scaling.factor)
        self.register_buffer("basis", scaling.basis)
        longest = None if scaling.longest == inf else torch.tensor(scaling.longest)
        self.register_buffer("longest", longest)  # None: as former versions had it

    def standardise(self, features: Tensor) -> Tensor:
        """Features (B, f) as W expects them."""
        return self.scaling.apply(features)

    @property
    def scaling(self) -> Scaling:
        """Its statistics, where the readout is."""
        buffers: Any = self
        longest = inf if buffers.longest is None else float(buffers.longest)
        return Scaling(buffers.mean, buffers.factor, buffers.basis, longest)

    def forward(self, features: Tensor, base: Tensor) -> Tensor:
        """Logits (B, k) of standardised features (B, f) and the model's own logits (B, k)."""
        return base + F.linear(features, self.weight, self.bias)

    def save(self, folder: Path) -> None:
        """Write ``readout.safetensors`` and ``readout.json`` beside a model's files."""
        from safetensors.torch import save_file

        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors()}
        save_file(state, folder / TENSORS_FILE)
        about = {"features": self.features, "classes": self.classes}
        (folder / ABOUT_FILE).write_text(json.dumps(about, indent=1) + "\n")

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [*self.named_parameters(), *self.named_buffers()]


def load_readout(folder: Path) -> Readout | None:
    """Read what ``Readout.save`` wrote; None if there is none in the folder.

    Raises:
        DataError: its files are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / ABOUT_FILE).is_file():
        return None
    try:
        about = json.loads((folder / ABOUT_FILE).read_text())
        state = load_file(folder / TENSORS_FILE)
        basis = state["basis"].float() if "basis" in state else None
        longest = float(state["longest"]) if "longest" in state else inf
        scaling = Scaling(state["mean"].float(), state["factor"].float(), basis, longest)
        readout = Readout(str(about["features"]), int(about["classes"]), scaling)
        readout.load_state_dict(state)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{folder / TENSORS_FILE}: a readout expected ({error})") from error
    return readout


@dataclass(frozen=True)
class ReadoutSettings:
    """What the settings of a run say of its readout."""

    features: str  # as ``parse_features`` reads it
    classes: int
    count: int  # of the features (f)
    scaling: str  # the setting feature-scaling, resolved


def attach_readout_(module: nn.Module, wanted: ReadoutSettings | None, start: Path | None) -> None:
    """Give a module the readout of the folder that a run starts from, or a new one.

    Args:
        module: of transformers; it gets a sub-module ``readout``.
        wanted: a run that trains no readout wants none, but keeps the one that it starts from.
        start: the folder of the model that the run starts from, if it does from one.

    Raises:
        ConfigError: the folder's readout is of other features or another number of classes.
    """
    readout = load_readout(start) if start is not None else None
    if readout is not None and wanted is not None:
        own, other = (wanted.features, wanted.classes), (readout.features, readout.classes)
        if own != other:
            raise ConfigError(
                f"init-from: a readout of features {own[0]!r} and {own[1]} classes expected, got "
                f"{other[0]!r} and {other[1]}"
            )
    if readout is None and wanted is not None:
        scaling = Scaling.decode(wanted.scaling, wanted.count)
        readout = Readout(wanted.features, wanted.classes, scaling)
    if readout is not None:
        module.add_module(READOUT, readout.eval())


def scaling_of(folder: Path) -> str:
    """The text of the scaling of a folder's readout, or ``none`` if it has no readout."""
    readout = load_readout(folder)
    return NONE if readout is None else readout.scaling.encode()


@dataclass(frozen=True)
class LinearBatch:
    """What a linear readout needs of a batch; the gradient of its mean loss in closed form."""

    features: Tensor  # (B, f) standardised
    loss: float
    error: Tensor  # (B, k) the mean loss's derivatives by the outputs

    @classmethod
    def of_classes(cls, features: Tensor, logits: Tensor, classes: Tensor) -> "LinearBatch":
        """With the cross-entropy of logits (B, k) and classes (B,): the error is (p - y) / B."""
        log_p = torch.log_softmax(logits, 1)
        rows = torch.arange(len(classes), device=classes.device)
        loss = -log_p[rows, classes].double().mean()
        error = log_p.exp()
        error[rows, classes] -= 1
        return cls(features, float(loss), error / len(classes))

    @classmethod
    def of_numbers(cls, features: Tensor, outputs: Tensor, numbers: Tensor) -> "LinearBatch":
        """With the squared error of outputs o (B, 1), numbers n (B,): the error is 2(o - n) / B."""
        error = outputs.double() - numbers[:, None]
        return cls(features, float(error.square().mean()), (2 * error / len(error)).float())

    def slopes(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Slope of each example's own loss along a direction, (B,) float64.

        Args:
            direction: of W (k, f) and b (k,), by the parameters' names; one of them may be missing.
        """
        moved = torch.zeros_like(self.error)  # what the direction does to the logits
        if WEIGHT in direction:
            moved = moved + F.linear(self.features, direction[WEIGHT].float())
        if BIAS in direction:
            moved = moved + direction[BIAS].float()
        return (moved.double() * self.error.double()).sum(1) * len(self.error)

    def gradient(self) -> dict[str, Tensor]:
        """Gradients of W (k, f) and b (k,), by the parameters' names."""
        return {WEIGHT: self.error.T @ self.features, BIAS: self.error.sum(0)}
