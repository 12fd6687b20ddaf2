"""MNIST with the convolutional network of DeComFL: 28,938 parameters, ten classes.

Model, task and data set register as any plug-in's do, so that our engine, sites, ledger and
replicas train the network as they train a language model. A row is a class and 784 pixels.
Li et al. 2024, https://arxiv.org/abs/2405.15861: two convolutions of 5 by 5 (16 and 32 channels)
with padding 2, each with ReLU and a maximum over 2 by 2, and a linear layer 1,568 to 10.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.config.schema import Config
from shared.data.documents import DATASETS, Documents, Source
from shared.data.sets.pictures import Pictures, mnist_pictures
from shared.features.readout_logits import readout_logits
from shared.models.model import MODELS, LanguageModel
from shared.models.tokenizers import ByteTokenizer
from shared.packages.package import CARRIERS
from shared.tasks.classification import Classification
from shared.tasks.task import TASKS

NAME, SIDE, CLASSES = "mnist-cnn", 28, 10
FEATURES = 32 * (SIDE // 4) ** 2  # what the linear layer reads
PART = 64  # pictures whose maps stay in a core's cache
MEAN, DEVIATION = 0.1307, 0.3081  # of MNIST's pixels between 0 and 1, as everyone scales them


class PositiveMaximum(nn.Module):
    """The maximum over 2 by 2, then ReLU: the same numbers as ReLU first, on a quarter of them.

    Comparing slices takes a quarter of the time of ``MaxPool2d`` where channels are last.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, C, H / 2, W / 2) of maps (B, C, H, W)."""
        rows = torch.maximum(maps[:, :, ::2], maps[:, :, 1::2])
        return torch.maximum(rows[..., ::2], rows[..., 1::2]).relu_()


class PicturesForSequenceClassification(nn.Module):
    """Two convolutions and a linear layer over pictures of 28 by 28.

    Named and called as the encoders with a head of transformers are, so that a run may train a
    readout of what the linear layer reads.
    """

    base_model_prefix = "body"

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=SIDE * SIDE, num_labels=CLASSES,
                                      hidden_size=FEATURES, num_hidden_layers=1)  # fmt: skip
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), PositiveMaximum(),
            nn.Conv2d(16, 32, 5, padding=2), PositiveMaximum(), nn.Flatten(),
        )  # fmt: skip
        self.out = nn.Linear(FEATURES, CLASSES)

    def forward(
        self, pixels: Tensor, *, output_hidden_states: bool = False, **_: object
    ) -> SimpleNamespace:
        """Logits (B, 10) of pixels (B, 784) from 0 to 255; features as states of one token."""
        features = self.features(pixels)
        states = (features[:, None],) if output_hidden_states else None
        return SimpleNamespace(logits=self.out(features), hidden_states=states)

    def features(self, pixels: Tensor) -> Tensor:
        """What the linear layer reads (B, 1568)."""
        scaled = pixels.float().mul_(1 / (255 * DEVIATION)).sub_(MEAN / DEVIATION)
        # One channel: these are the strides of channels last, which all further maps then have.
        pictures = scaled.as_strided((len(scaled), 1, SIDE, SIDE), (SIDE * SIDE, 1, SIDE, 1))
        parts = [self.body(part) for part in torch.split(pictures, PART)]
        return torch.cat(parts)


def network(seed: int) -> LanguageModel:
    """The untrained network; torch's own initialisation, from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = PicturesForSequenceClassification()
    return LanguageModel(NAME, module.eval(), ByteTokenizer())


@dataclass(frozen=True)
class PixelTask:
    """Makes a classification whose texts are pixels, a character from 0 to 255 each."""

    outputs: int = CLASSES

    def __call__(self, config: Config, model: LanguageModel) -> Classification:
        """The task of a run; a readout, if the model has one, gives the logits."""
        readout = readout_logits(model, config, ())
        return Classification(self.outputs, _pixels, readout or _logits, readout)


def _pixels(text: str, most: int) -> NDArray[np.int64]:
    return np.frombuffer(text.encode("latin-1"), np.uint8)[:most].astype(np.int64)


def _logits(module: nn.Module, pixels: Tensor, lengths: Tensor) -> Tensor:
    del lengths  # all pictures are of one size
    scores: Tensor = module(pixels).logits
    return scores


def pixels_of(pictures: Callable[[], Pictures]) -> Callable[[int, str], Documents]:
    """A data set's function: each picture as a text of one character per pixel."""

    def load(max_samples: int, by: str = "digit") -> Documents:
        del by
        whole = pictures()
        texts = [picture.tobytes().decode("latin-1") for picture in whole.pixels]
        names = [whole.classes[label] for label in whole.labels]
        flags = None if whole.held_out is None else whole.held_out.tolist()
        return Documents(texts, names, whole.labels.tolist(), whole.classes, flags).thin(
            max_samples
        )

    return load


def register() -> None:
    """Make model, task and data set known to this process; only the benchmark does so."""
    if NAME in MODELS:
        return
    MODELS.register(NAME)(network)
    TASKS.register("pictures")(PixelTask())
    source = Source(
        pixels_of(mnist_pictures), "packaged", "handwritten digits as pixels", ("digit",),
        "70,000 pictures", "CC BY-SA 3.0", carrier=CARRIERS["mnist"],
    )  # fmt: skip
    DATASETS.register("mnist-pixels")(source)
