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
from shared.training.corpus import Corpus, load_evaluation
from shared.training.oracle import Oracle

SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of the training examples, one point each
DECAYS = (1e-4, 1e-3, 1e-2)  # of the weights; chosen on TRIAL of the training features
TRIAL, STEPS, BATCH = 0.1, 100, 16
MOST_BLOCKS = 512  # of language modelling, where every token is an example of the probe
FEATURE_BYTES = 4


@dataclass(frozen=True)
class Probe:
    """A linear layer over standardised features."""

    mean: Tensor  # (C,)
    deviation: Tensor  # (C,)
    layer: nn.Linear  # C to k

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, classes: int) -> "Probe":
        """Train on features (n, C) and labels (n,), with the weight decay that suits them."""
        cut = max(1, round(len(features) * TRIAL))
        trials = [cls._fit(features[cut:], labels[cut:], classes, decay) for decay in DECAYS]
        losses = [float(trial.evaluate(features[:cut], labels[:cut])[0]) for trial in trials]
        return cls._fit(features, labels, classes, DECAYS[int(np.argmin(losses))])

    @classmethod
    def _fit(cls, features: Tensor, labels: Tensor, classes: int, decay: float) -> "Probe":
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

    @torch.no_grad()
    def evaluate(self, features: Tensor, labels: Tensor) -> tuple[float, float]:
        """Mean loss in nats, and the share of right choices."""
        scores = self.layer((features - self.mean) / self.deviation)
        right = (scores.argmax(1) == labels).float().mean()
        return float(F.cross_entropy(scores, labels)), float(right)


def probe_points(config: Config) -> list[RacePoint]:
    """Fit probes to ever larger shares of the training examples; cost per site, pooled features."""
    oracle = Oracle.of(config)
    corpus = Corpus.of(config, oracle.language_model)
    sites, held_out = config.federation.num_clients, load_evaluation(corpus, oracle.language_model)
    count = len(corpus.training) if oracle.task.classes else min(MOST_BLOCKS, len(corpus.training))
    order = np.random.default_rng(config.training.seed).permutation(len(corpus.training))[:count]
    started = time.perf_counter()
    rows = torch.from_numpy(corpus.training.batch(order))
    features, labels = features_of(oracle, rows)
    others = features_of(oracle, held_out)
    forward_s, classes = time.perf_counter() - started, oracle.task.classes or int(labels.max()) + 1
    per_example = len(features) // count
    points = []
    for share in SHARES:
        started, some = time.perf_counter(), max(2, round(share * count))
        part = slice(0, some * per_example)
        loss, accuracy = Probe.fit(features[part], labels[part], classes).evaluate(*others)
        size = features[part].numel() * FEATURE_BYTES / sites
        points.append(
            RacePoint(
                round=0,
                evaluations=some / sites / (config.zo.batch_size or some / sites),
                examples=some / sites,
                seconds=share * forward_s + time.perf_counter() - started,
                payload_up=size,
                payload=size,
                message=size,
                loss=loss,
                accuracy=accuracy if oracle.task.classes else None,
            )
        )
    return points


@torch.inference_mode()
def features_of(oracle: Oracle, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What the last layer reads (n, C), and the labels (n,); of blocks of text, each token's."""
    pairs = list(_features(oracle, rows))
    features, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return features.clone(), labels.clone()


def _features(oracle: Oracle, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    module: Any = oracle.language_model.module
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
