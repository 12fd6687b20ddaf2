"""Scores of classes as objectives, lower is better: wrong choices, 1 − F1, and the hinge loss."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from shared.base.metrics import confusion_of, f1
from shared.objectives.reward import Batch


def error(batch: Batch) -> Tensor:
    """1 for an example whose largest logit is of another class than its own, else 0; (B,).

    The mean is 1 − accuracy. NaN if a logit is not finite, since a diverged model chooses nothing.
    """
    wrong = batch.logits.argmax(1) != batch.labels
    return _nan_if_diverged(batch, wrong.double())


def f1_loss(batch: Batch) -> Tensor:
    """1 − F1 of the whole batch, the same number for each of its examples (B,).

    F1 is that of the evaluation: of class 1 if there are two, else the mean over all classes.
    """
    choices = batch.logits.argmax(1).cpu().numpy()
    confusion = confusion_of(batch.labels.cpu().numpy(), choices, batch.logits.shape[1])
    value = torch.full_like(batch.logits[:, 0], 1 - f1(confusion), dtype=torch.float64)
    return _nan_if_diverged(batch, value)


def hinge(batch: Batch) -> Tensor:
    """max(0, 1 − margin), the margin being the class's logit minus the largest other one; (B,).

    Crammer and Singer 2001, "On the algorithmic implementation of multiclass kernel-based vector
    machines". It has a slope wherever accuracy has none: examples that are nearly right.
    """
    own = batch.logits.gather(1, batch.labels[:, None])[:, 0]
    others = batch.logits.scatter(1, batch.labels[:, None], -torch.inf).amax(1)
    return _nan_if_diverged(batch, (1 - (own - others)).clamp(min=0).double())


def _nan_if_diverged(batch: Batch, values: Tensor) -> Tensor:
    finite = batch.logits.isfinite().all(1)
    return torch.where(finite, values, torch.nan)


SCORES: Mapping[str, Callable[[Batch], Tensor]] = {
    "accuracy": error,
    "f1": f1_loss,
    "margin": hinge,
}
