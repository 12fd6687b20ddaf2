"""Gradients of one number per parameter: backpropagated, or the sum of some local AdamW steps."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from shared.base.options import arguments_of
from shared.codecs import Codec
from shared.codecs.topk import ErrorFeedback
from shared.config.schema import Config
from shared.data.examples import Examples
from shared.modes.batches import gradient_rows
from shared.modes.standard import LocalAdamW
from shared.optimizers.gradient import add_scaled_
from shared.training.oracle import EVALUATION_BATCH, Oracle


@dataclass
class GradientSender:
    """Encodes a site's gradients; with error feedback it keeps what a lossy codec has lost.

    A repeated request gives the same payload, since the residual of before the round is kept. The
    residual is lost with the process.
    """

    codec: Codec
    feedback: bool
    _round: int = 0
    _before: Tensor | None = field(default=None, repr=False)
    _after: Tensor | None = field(default=None, repr=False)

    def encode(self, round_: int, vector: Tensor) -> bytes:
        """Encode a round's gradient (size,) into its payload."""
        if not self.feedback:
            return self.codec.encode(vector)
        if round_ != self._round:
            self._round, self._before = round_, self._after
        feedback = ErrorFeedback(self.codec, self._before)
        payload = feedback.encode(vector)
        self._after = feedback.residual
        return payload


def batch_of(config: Config, examples: Examples, slot: int, round_: int, step: int) -> Tensor:
    """The examples (B, T) of one backward pass: a pure function of its arguments."""
    rows = gradient_rows(config, slot, round_, step, len(examples))
    return torch.from_numpy(examples.batch(rows))


def backpropagate(
    config: Config, oracle: Oracle, examples: Examples, slot: int, round_: int
) -> tuple[list[float], Tensor]:
    """Return loss and gradient (size,) of one batch."""
    loss, gradient = _gradient(config, oracle, batch_of(config, examples, slot, round_, 0))
    return [loss], gradient


def _gradient(config: Config, oracle: Oracle, rows: Tensor) -> tuple[float, Tensor]:
    return oracle.gradient(rows) if config.bp.batch_size else gradient_of_all(oracle, rows)


def gradient_of_all(oracle: Oracle, rows: Tensor) -> tuple[float, Tensor]:
    """Loss and gradient (size,) of any number of rows, a few in each pass."""
    total, mean = 0.0, torch.zeros_like(oracle.replica.model.flat, dtype=torch.float32)
    for part in torch.split(rows, EVALUATION_BATCH):
        loss, gradient = oracle.gradient(part)
        share = len(part) / len(rows)
        total += share * loss
        add_scaled_(mean, gradient, share)
    return total, mean


def train_locally(
    config: Config, oracle: Oracle, examples: Examples, slot: int, round_: int, rate: float
) -> tuple[list[float], Tensor]:
    """Return losses, and the parameters before minus those after K steps of AdamW (size,).

    The replica is left as it was. The optimizer's state starts anew each round, as in
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
        for step in range(config.training.local_steps):
            rows = batch_of(config, examples, slot, round_, step)
            loss, free.grad = _gradient(config, oracle, rows)
            losses.append(loss)
            optimizer.step()
        return losses, saved - flat
    finally:
        flat.copy_(saved)
