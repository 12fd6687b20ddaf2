"""Loss differences of any module on any batches: what a client measures in a round."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from client.handlers.client_replica import ReadyReplica
from shared.base.errors import DataError
from shared.base.flat import FlatModel
from shared.estimation.exact import exact_differences, gradient_of
from shared.estimation.forward_differences import forward_differences
from shared.estimation.perturber import Perturber
from shared.estimation.two_point import two_point
from shared.modes.estimators import EXACT, FORWARD, estimator_of
from shared.optimizers.gradient import add_scaled_
from shared.protocol.messages import Measured
from shared.protocol.site_id import SiteId
from shared.randomness.philox import words
from shared.randomness.streams import SHARED_SLOT, direction_keys, query_batch_key

Batch = object  # whatever the user's data gives and loss takes
Batches = Iterable[Batch]
Loss = Callable[[nn.Module, Batch], Tensor]


def measure(ready: ReadyReplica, site: SiteId, loss: Loss, load: Callable[[], Batches]) -> Measured:
    """Measure the q loss differences of a round; the parameters are left as they are.

    All queries of a round are measured on the same batches: the first ``batches`` that the data
    gives. While it gives them, torch's generator is seeded by run, round and site, so a loader that
    shuffles by it gives the same batches if the round is requested again.

    Costs 2q passes over these batches, q + 1 with forward differences, or one forward and one
    backward pass with exact slopes.

    Raises:
        DataError: the data gives no batch, or a loss is not finite or has a wrong shape.
        ConfigError: ``loss`` wrote parameters or buffers.
    """
    start, model, config = time.monotonic(), ready.model, ready.run.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_batch_seed(config.training.seed, ready.request.round, site))
        source = load()
        batches = list(islice(source, ready.run.batches or None))
    if not batches:
        raise DataError(f"site {site.name}: at least one batch expected, the data gives none")
    replica, losses = model.replica, list[float]()
    moved = [to_device(batch, replica.model.flat.device) for batch in batches]
    sizes = [examples_in(batch) for batch in moved]
    digest, versions = replica.digest(), model.versions()

    def at_once(query: int = 0) -> float:
        del query  # all see the same batches
        losses.append(mean_loss(loss, model.module, moved, sizes))
        return losses[-1]

    slot = SHARED_SLOT if config.zo.seed_schedule == "shared" else site.slot
    keys = direction_keys(config.training.seed, ready.request.round, slot, 0, config.zo.queries)
    perturber = Perturber(replica.model, replica.directions)
    if estimator_of(config) == EXACT:
        baseline, gradient = mean_gradient(loss, replica.model, moved, sizes)
        differences = exact_differences(replica.directions, keys, gradient, config.zo.eps)
    else:
        with torch.inference_mode():
            if estimator_of(config) == FORWARD:
                differences, baseline = forward_differences(at_once, perturber, keys, config.zo.eps)
            else:
                differences = two_point(at_once, perturber, keys, config.zo.eps)
                baseline = float(np.mean(losses))
    model.check_unchanged(digest, versions, "loss")
    return Measured(
        round=ready.request.round,
        differences=differences,
        examples=_weight(source, sizes),
        loss=baseline,
        seconds=time.monotonic() - start,
        digest=digest,
    )


def mean_loss(
    loss: Loss, module: nn.Module, batches: Sequence[Batch], sizes: Sequence[int]
) -> float:
    """Mean loss per example over batches, summed in float64.

    Args:
        loss: gives the loss of each example (n,), or their mean ().
        module: at the parameters that are measured.
        batches: what ``loss`` takes.
        sizes: examples in each batch: the weight of a mean.

    Raises:
        DataError: a loss has another shape or is not finite.
    """
    total = 0.0
    for number, (batch, size) in enumerate(zip(batches, sizes, strict=True)):
        total += float(_mean_of(loss, module, batch, number).detach()) * size
    return total / sum(sizes)


def mean_gradient(
    loss: Loss, model: FlatModel, batches: Sequence[Batch], sizes: Sequence[int]
) -> tuple[float, Tensor]:
    """Mean loss per example over batches, and its gradient (size,), by backpropagation.

    Args:
        loss: as for ``mean_loss``; differentiable.
        model: at the parameters that are measured.
        batches: what ``loss`` takes.
        sizes: examples in each batch: the weight of a mean.

    Raises:
        DataError: a loss has another shape, is not finite or has no gradient.
    """
    total, gradient = 0.0, torch.zeros_like(model.flat, dtype=torch.float32)
    for number, (batch, size) in enumerate(zip(batches, sizes, strict=True)):
        with torch.enable_grad():
            mean = _mean_of(loss, model.module, batch, number)
            add_scaled_(gradient, gradient_of(model, mean), size / sum(sizes))
        total += float(mean.detach()) * size
    return total / sum(sizes), gradient


def _mean_of(loss: Loss, module: nn.Module, batch: Batch, number: int) -> Tensor:
    """The mean loss of a batch, a scalar in float64."""
    value = loss(module, batch)
    if not isinstance(value, Tensor) or value.ndim > 1 or not value.numel():
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise DataError(f"loss of batch {number}: a tensor (n,) or () expected, got {what}")
    mean = value.double().mean()
    if not math.isfinite(got := float(mean.detach())):
        raise DataError(
            f"loss of batch {number}: a finite number expected, got {got}; a smaller lr or "
            "eps, or a loss without overflow, may help"
        )
    return mean


def examples_in(batch: Batch) -> int:
    """Number of examples of a batch: the length of the first tensor in it; 1 if there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    if isinstance(batch, Mapping):
        return examples_in(next(iter(batch.values()), None))
    if isinstance(batch, tuple | list) and batch:
        return examples_in(batch[0]) if isinstance(batch[0], Tensor) else len(batch)
    return 1


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch with its tensors, also those in lists, tuples and mappings, on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list) and type(batch) in (tuple, list):
        return type(batch)(to_device(each, device) for each in batch)
    return batch


def _batch_seed(seed: int, round_: int, site: SiteId) -> int:
    drawn = words(query_batch_key(seed, round_, site.slot, 0), range(1))[0]
    return int(drawn[0]) << 31 | int(drawn[1]) >> 1


def _weight(source: Batches, sizes: Sequence[int]) -> int:
    """Examples of the client's data if that is known, as of a DataLoader; else of the batches."""
    dataset = getattr(source, "dataset", None)
    return len(dataset) if dataset is not None and hasattr(dataset, "__len__") else sum(sizes)
