"""One data owner measures what the round's plan asks for, on its own shard of the data."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.privacy.site_privacy import SitePrivacy
from client.sealed.sealed_site import SealedSite
from client.site.first_order import GradientSender, backpropagate, train_locally
from client.site.keep_ahead import gradient_draws, keep_ahead, query_draws
from client.site.zeroth_order import Queries
from shared.base.metrics import EvalSums
from shared.config.schema import Config
from shared.data.examples import Examples
from shared.modes.mode import Plan, plan_of
from shared.modes.step_rule import compares
from shared.protocol.messages import Measured, Request
from shared.protocol.sealed_messages import Sealed
from shared.protocol.site_id import SiteId
from shared.training.oracle import Oracle, evaluate


@dataclass
class LocalSite:
    """A site: its name, its examples, and how it measures; it leaves the replica unchanged."""

    id: SiteId
    examples: Examples  # measured on
    config: Config
    bp_examples: Examples | None = None  # backpropagated on; None: the same
    can_backpropagate: bool = True
    held_out: Examples | None = None  # evaluated on, if sites evaluate
    privacy: SitePrivacy | None = None  # None: nothing is limited, counted or hidden
    sealed: SealedSite | None = None  # None: its numbers are not sealed
    _sender: GradientSender | None = field(default=None, repr=False)
    _kept_by: Oracle | None = field(default=None, repr=False)  # what keeps all that it will
    _answers: dict[tuple[object, ...], Measured | Sealed] = field(default_factory=dict, repr=False)

    @property
    def count(self) -> int:
        """Number of examples that this site says it has: of a private one, those of a batch."""
        is_private = self.config.privacy.is_local
        return self.config.zo.batch_size if is_private else len(self.examples)

    @property
    def roster(self) -> str:
        """Digest of the roster that it accepts, hexadecimal; empty: its numbers are not sealed."""
        return "" if self.sealed is None else self.sealed.identity.roster.digest.hex()

    def measure(self, oracle: Oracle, request: Request) -> Measured | Sealed:
        """Return the reply to a request: loss differences, an encoded gradient, or both.

        Costs K steps of queries (``evaluations_of``), one backward pass, or both, as the plan says.
        """
        started = time.perf_counter()
        self.keep_ahead(oracle, request.round)
        if self.sealed is not None:
            return self._measure_sealed(oracle, request, self.sealed)
        if self.privacy is not None and self.privacy.noisy is not None:
            return self._measure_privately(oracle, request, self.privacy)
        plan = plan_of(self.config, request.round, self.can_backpropagate)
        losses, payload, guide = self._gradient(oracle, request, plan)
        if plan.along == "guidance":
            guide = oracle.replica.guidance
        numbers: NDArray[np.float32] = np.zeros(0, np.float32)
        compared: tuple[float | None, float | None] = None, None
        if plan.measure:
            queries = Queries(
                self.id, self.examples, self.config, request.round, losses, self.can_backpropagate
            )
            along = None if plan.along == "keys" else guide
            numbers = queries.measure(oracle, request.learning_rate, along)
            compared = losses_around_step(queries, oracle, request)
        if self.privacy is not None:
            self.privacy.pay_for_raw(oracle, request, len(numbers))
        outcome = self.evaluate(oracle) if request.evaluate else None
        measured = Measured(
            round=request.round,
            differences=numbers,
            examples=self.count,
            loss=float(np.float32(np.mean(losses))) if self.config.privacy.sends_loss else None,
            seconds=time.perf_counter() - started,
            digest=oracle.replica.digest(),
            gradient=payload,
            outcome=outcome,
            before=compared[0],
            after=compared[1],
        )
        self._remember(request, measured)
        return measured

    def keep_ahead(self, oracle: Oracle, round_: int) -> None:
        """Compute what is kept of all examples, once for an oracle, if the run comes to them."""
        if self._kept_by is oracle:
            return
        self._kept_by = oracle
        about = self.config, round_, self.can_backpropagate
        keep_ahead(oracle, self.examples, query_draws(*about))
        keep_ahead(oracle, self.bp_examples or self.examples, gradient_draws(*about))

    def _measure_privately(
        self, oracle: Oracle, request: Request, privacy: SitePrivacy
    ) -> Measured:
        """Return noisy numbers of a secret batch, and nothing else that depends on the data."""
        queries = Queries(self.id, self.examples, self.config, request.round)
        measured = Measured(
            round=request.round,
            differences=privacy.measure(oracle, request, queries.keys(0)),
            examples=self.count,
            loss=None,
            seconds=0.0,
            digest=oracle.replica.digest(),
        )
        self._remember(request, measured)
        return measured

    def _measure_sealed(self, oracle: Oracle, request: Request, sealed: SealedSite) -> Sealed:
        """Return noisy numbers of a secret batch, in boxes for the committee."""
        queries = Queries(self.id, self.examples, self.config, request.round)
        reply = sealed.measure(oracle, request, queries.keys(0))
        self._remember(request, reply)
        return reply

    def evaluate(self, oracle: Oracle) -> EvalSums | None:
        """Evaluate the model on this site's held-out examples; None if it has none."""
        if self.held_out is None:
            return None
        rows = torch.from_numpy(self.held_out.batch(np.arange(len(self.held_out))))
        return evaluate(oracle, rows)

    def recall(self, request: Request) -> Measured | Sealed | None:
        """Return the answer to the same request, if it was given lately and remembered."""
        return self._answers.get(_identity(request))

    def _remember(self, request: Request, measured: Measured | Sealed) -> None:
        """Remember the answers of the open rounds, except gradients, which are large."""
        is_large = isinstance(measured, Measured) and bool(measured.gradient)
        if self.config.federation.staleness and not is_large:
            self._answers[_identity(request)] = measured
            while len(self._answers) > 1 + self.config.federation.staleness:
                del self._answers[next(iter(self._answers))]

    def forget_residual(self) -> None:
        """Drop the residual of error feedback: it is of rounds that were undone."""
        self._sender = None

    def _gradient(
        self, oracle: Oracle, request: Request, plan: Plan
    ) -> tuple[list[float], bytes, Tensor | None]:
        """Losses, payload, and the gradient (size,) as the server will decode it.

        All are empty if the plan has no gradient.
        """
        if not plan.dense:
            return [], b"", None
        codec, examples = oracle.replica.codec, self.bp_examples or self.examples
        arguments = self.config, oracle, examples, self.id.slot, request.round
        if plan.train:
            losses, vector = train_locally(*arguments, request.learning_rate)
        else:
            losses, vector = backpropagate(*arguments)
        self._sender = self._sender or GradientSender(codec, self.config.bp.error_feedback)
        payload = self._sender.encode(request.round, vector)
        return losses, payload, codec.decode(payload) if plan.measure else None


def losses_around_step(
    queries: Queries, oracle: Oracle, request: Request
) -> tuple[float | None, float | None]:
    """Losses of the batches of the next step and of the last one, as far as they are wanted.

    All of a site's examples are one and the same batch in every round.
    """
    if not compares(queries.config):
        return None, None
    before = queries.loss_before(oracle)
    after = (
        queries.loss_after(oracle) if request.compare and queries.config.zo.batch_size else before
    )
    return float(np.float32(before)), float(np.float32(after)) if request.compare else None


def _identity(request: Request) -> tuple[object, ...]:
    """All that an answer depends on, beside the site."""
    return request.run, request.round, request.digest, request.learning_rate, request.attempt
