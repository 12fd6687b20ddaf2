"""Gradients of one number per parameter: backpropagated, or the way of some local AdamW steps."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from shared.base.options import arguments_of
from shared.codecs import Codec
from shared.codecs.error_feedback import ErrorFeedback
from shared.config.schema import Config
from shared.data.examples import Examples, draw
from shared.modes.standard import LocalAdamW
from shared.training.oracle import Oracle

FIRST_BATCH = 1 << 16  # batches of queries have lower numbers


@dataclass
class GradientSender:
    """Encodes a site's gradients, and remembers what a lossy codec owes where that is asked for.

    A round that is asked for again gives the same payload: the debt of before it is kept.
    What is owed is lost with the process.
    """

    codec: Codec
    feedback: bool
    _round: int = 0
    _before: Tensor | None = field(default=None, repr=False)
    _after: Tensor | None = field(default=None, repr=False)

    def encode(self, round_: int, vector: Tensor) -> bytes:
        """The payload of a round's gradient (size,)."""
        if not self.feedback:
            return self.codec.encode(vector)
        if round_ != self._round:
            self._round, self._before = round_, self._after
        owing = ErrorFeedback(self.codec, self._before)
        payload = owing.encode(vector)
        self._after = owing.residual
        return payload


def batch_of(config: Config, examples: Examples, slot: int, round_: int, step: int) -> Tensor:
    """The examples (bp-batch-size, T) of one backward pass: a pure function of its arguments."""
    number = FIRST_BATCH + step
    rows = draw(config.seed, slot, round_, number, len(examples), config.bp_batch_size)
    return torch.from_numpy(examples.batch(rows))


def backpropagate(
    config: Config, oracle: Oracle, examples: Examples, slot: int, round_: int
) -> tuple[list[float], Tensor]:
    """Loss and gradient (size,) of one batch."""
    loss, gradient = oracle.gradient(batch_of(config, examples, slot, round_, 0))
    return [loss], gradient


def train_locally(
    config: Config, oracle: Oracle, examples: Examples, slot: int, round_: int, rate: float
) -> tuple[list[float], Tensor]:
    """Losses, and parameters before less those after K steps of AdamW (size,).

    The replica is as it was when this is done. The optimizer's state starts anew each round, as in
    FedAvg (McMahan et al. 2017, https://arxiv.org/abs/1602.05629).
    """
    model, losses = oracle.replica.model, list[float]()
    options = LocalAdamW(**arguments_of(LocalAdamW, config.options))  # type: ignore[arg-type]
    saved, flat = model.flat.clone(), model.flat
    free = torch.nn.Parameter(flat)  # shares its memory: a step moves the model
    optimizer = torch.optim.AdamW(
        [free],
        lr=rate,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        weight_decay=options.weight_decay,
        foreach=False,
    )
    try:
        for step in range(config.local_steps):
            loss, free.grad = oracle.gradient(batch_of(config, examples, slot, round_, step))
            losses.append(loss)
            optimizer.step()
        return losses, saved - flat
    finally:
        flat.copy_(saved)
