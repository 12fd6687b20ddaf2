"""The work of one data owner, on its own shard: what the round's plan asks for."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.site.first_order import GradientSender, backpropagate, train_locally
from client.site.zeroth_order import Queries
from shared.base.metrics import EvalSums
from shared.config.schema import Config
from shared.data.examples import Examples
from shared.modes.mode import Plan, plan_of
from shared.protocol.messages import Measured, Request
from shared.protocol.site_id import SiteId
from shared.training.oracle import Oracle, evaluate


@dataclass
class LocalSite:
    """A name, its examples and how it measures; the replica it is handed stays as it is."""

    id: SiteId
    examples: Examples  # measured on
    config: Config
    bp_examples: Examples | None = None  # backpropagated on; the same where none are given
    can_backpropagate: bool = True
    held_out: Examples | None = None  # evaluated on, where sites evaluate
    _sender: GradientSender | None = field(default=None, repr=False)
    _answers: dict[tuple[object, ...], Measured] = field(default_factory=dict, repr=False)

    @property
    def count(self) -> int:
        """Examples that this site holds."""
        return len(self.examples)

    def measure(self, oracle: Oracle, request: Request) -> Measured:
        """The reply to a request: loss differences, an encoded gradient, or both."""
        started = time.perf_counter()
        plan = plan_of(self.config, request.round, self.can_backpropagate)
        losses, payload, guide = self._gradient(oracle, request, plan)
        if plan.along == "guidance":
            guide = oracle.replica.guidance
        numbers: NDArray[np.float32] = np.zeros(0, np.float32)
        if plan.measure:
            queries = Queries(self.id, self.examples, self.config, request.round, losses)
            along = None if plan.along == "keys" else guide
            numbers = queries.measure(oracle, request.learning_rate, along)
        outcome = self.evaluated(oracle) if request.evaluate else None
        measured = Measured(
            round=request.round,
            differences=numbers,
            examples=self.count,
            loss=float(np.float32(np.mean(losses))),
            seconds=time.perf_counter() - started,
            digest=oracle.replica.digest(),
            gradient=payload,
            outcome=outcome,
        )
        self._keep(request, measured)
        return measured

    def evaluated(self, oracle: Oracle) -> EvalSums | None:
        """What the model does on the examples that this site keeps for that."""
        if self.held_out is None:
            return None
        rows = torch.from_numpy(self.held_out.batch(np.arange(len(self.held_out))))
        return evaluate(oracle, rows)

    def answered(self, request: Request) -> Measured | None:
        """The answer that was given to the same request a moment ago, where it was kept."""
        return self._answers.get(_name(request))

    def _keep(self, request: Request, measured: Measured) -> None:
        """Keep the answers of the rounds that may be open, but for gradients: they are large."""
        if self.config.staleness and not measured.gradient:
            self._answers[_name(request)] = measured
            while len(self._answers) > 1 + self.config.staleness:
                del self._answers[next(iter(self._answers))]

    def forget(self) -> None:
        """Owe nothing any more: what was lost on a way that the run left is of no use."""
        self._sender = None

    def _gradient(
        self, oracle: Oracle, request: Request, plan: Plan
    ) -> tuple[list[float], bytes, Tensor | None]:
        """Losses, payload, and the gradient as the server will decode it; nothing if not asked."""
        if not plan.dense:
            return [], b"", None
        codec, examples = oracle.replica.codec, self.bp_examples or self.examples
        what = self.config, oracle, examples, self.id.slot, request.round
        if plan.train:
            losses, vector = train_locally(*what, request.learning_rate)
        else:
            losses, vector = backpropagate(*what)
        self._sender = self._sender or GradientSender(codec, self.config.error_feedback)
        payload = self._sender.encode(request.round, vector)
        return losses, payload, codec.decode(payload) if plan.measure else None


def _name(request: Request) -> tuple[object, ...]:
    """All that an answer depends on, beside the site."""
    return request.run, request.round, request.digest, request.learning_rate
