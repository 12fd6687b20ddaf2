"""The mandatory baseline: a linear classifier on the frozen features of a problem's start.

Every example passes the frozen model once. Its features, standardised, then train a logistic
regression to its optimum, in one place. What a method gains over this is what training is worth.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from dandelion.bench.learning.race_points import RacePoint
from shared.config.schema import Config
from shared.models.model import to_transformers
from shared.training.corpus import Corpus, load_evaluation
from shared.training.oracle import Oracle

SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of the training examples, one point each
DECAYS = (1e-4, 1e-3, 1e-2)  # of the weights; chosen on TRIAL of the training features
TRIAL, STEPS, BATCH = 0.1, 50, 16
MOST_EXAMPLES, MOST_BLOCKS = 10_000, 512  # in a block every token is an example of the probe
FEATURE_BYTES = 4
BLOCKS = "language-modelling"  # has no classes, and so no accuracy


@dataclass(frozen=True)
class LinearProbe:
    """A linear layer over standardised features."""

    mean: Tensor  # (C,)
    deviation: Tensor  # (C,)
    layer: nn.Linear  # C to k

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, classes: int, decay: float) -> "LinearProbe":
        """Train on features (n, C) and labels (n,) to the optimum of loss and weight decay."""
        mean, deviation = features.mean(0), features.std(0).clamp(min=1e-6)
        scaled, layer = (features - mean) / deviation, nn.Linear(features.shape[1], classes)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        optimizer = torch.optim.LBFGS(
            layer.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            penalty = decay * layer.weight.square().sum()
            loss = F.cross_entropy(layer(scaled), labels) + penalty
            torch.autograd.backward(loss)
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return cls(mean, deviation, layer)

    @classmethod
    def choose_decay(cls, features: Tensor, labels: Tensor, classes: int) -> float:
        """The weight decay with which a probe does best on a part that it is not trained on."""
        cut = max(1, round(len(features) * TRIAL))
        trials = [cls.fit(features[cut:], labels[cut:], classes, decay) for decay in DECAYS]
        losses = [trial.evaluate(features[:cut], labels[:cut])[0] for trial in trials]
        return DECAYS[int(np.argmin(losses))]

    @torch.no_grad()
    def evaluate(self, features: Tensor, labels: Tensor) -> tuple[float, float]:
        """Mean loss in nats, and the share of right choices."""
        scores = self.layer((features - self.mean) / self.deviation)
        right = (scores.argmax(1) == labels).float().mean()
        return float(F.cross_entropy(scores, labels)), float(right)


@dataclass(frozen=True)
class FrozenFeatures:
    """Features and labels of training examples, and of those held out."""

    training: tuple[Tensor, Tensor]  # (n, C), (n,)
    held_out: tuple[Tensor, Tensor]
    classes: int
    examples: int  # of training; n is a multiple, if every token of a block is an example
    seconds: float  # that all forward passes took

    @classmethod
    def of(cls, config: Config, most: int) -> "FrozenFeatures":
        """Pass at most so many training examples, and all held-out ones, through the model."""
        oracle, started = Oracle.of(config), time.perf_counter()
        corpus = Corpus.of(config, oracle.language_model)
        limit = MOST_EXAMPLES if oracle.task.classes else MOST_BLOCKS
        count = min(most, limit, len(corpus.training))
        order = np.random.default_rng(config.training.seed).permutation(len(corpus.training))
        rows = torch.from_numpy(corpus.training.batch(order[:count]))
        training = features_of(oracle, rows)
        held_out = features_of(oracle, load_evaluation(corpus, oracle.language_model))
        last = int(max(training[1].max(), held_out[1].max()))
        classes, seconds = oracle.task.classes or 1 + last, time.perf_counter() - started
        return cls(training, held_out, classes, count, seconds)

    def share(self, share: float) -> tuple[Tensor, Tensor]:
        """Features and labels of the first training examples."""
        count = max(2, round(share * self.examples)) * (len(self.training[0]) // self.examples)
        return self.training[0][:count], self.training[1][:count]


def probe_points(config: Config, most: int) -> list[RacePoint]:
    """Fit probes to ever larger shares of the training examples.

    Args:
        config: of the problem.
        most: examples that all sites may read within the problem's evaluations.

    Costs are those of a site that sends its features to where they are pooled.
    """
    frozen = FrozenFeatures.of(config, most)
    decay = LinearProbe.choose_decay(*frozen.training, frozen.classes)
    return [_probe(config, frozen, share, decay) for share in SHARES]


def _probe(config: Config, frozen: FrozenFeatures, share: float, decay: float) -> RacePoint:
    started, (features, labels) = time.perf_counter(), frozen.share(share)
    loss, accuracy = LinearProbe.fit(features, labels, frozen.classes, decay).evaluate(
        *frozen.held_out
    )
    sites = config.federation.num_clients
    examples, size = share * frozen.examples / sites, features.numel() * FEATURE_BYTES / sites
    return RacePoint(
        round=0,
        evaluations=examples / (config.zo.batch_size or examples),
        examples=examples,
        seconds=share * frozen.seconds + time.perf_counter() - started,
        payload_up=size,
        payload=size,
        message=size,
        loss=loss,
        accuracy=None if config.data.task == BLOCKS else accuracy,
    )


@torch.no_grad()
def features_of(oracle: Oracle, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What the last layer reads (n, C), and the labels (n,); of blocks of text, each token's."""
    pairs = list(_features(oracle, rows))
    features, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return features, labels


def _features(oracle: Oracle, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    module: Any = to_transformers(oracle.language_model.module)
    for batch in torch.split(rows, BATCH):
        labels = oracle.task.labels(batch)
        if hasattr(module, "features"):
            yield module.features(batch[:, 1:]).float(), labels
        elif not oracle.task.classes:
            hidden = module.base_model(batch, use_cache=False).last_hidden_state
            yield hidden[:, :-1].flatten(0, 1).float(), labels[:, :-1].flatten()
        else:
            yield _text_features(oracle, batch[:, 1:]), labels


def _text_features(oracle: Oracle, tokens: Tensor) -> Tensor:
    """The mean over an encoder's tokens, or the last token of a causal model (B, C)."""
    model, module = oracle.language_model, oracle.language_model.module
    is_text = tokens >= 0
    filled = torch.where(is_text, tokens, model.tokenizer.pad)
    hidden = module.base_model(filled, attention_mask=is_text.long()).last_hidden_state.float()
    if model.has_head:
        pooled: Tensor = (hidden * is_text[..., None]).sum(1) / is_text.sum(1, keepdim=True)
        return pooled
    last: Tensor = hidden[torch.arange(len(tokens)), is_text.sum(1) - 1]
    return last
