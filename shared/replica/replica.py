"""A copy of the model that follows the ledger, entry by entry, with the same bits everywhere."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from torch import Tensor

from shared.base.errors import DivergedError, GapError
from shared.base.flat import FlatModel
from shared.base.options import arguments_of
from shared.codecs import Codec, codec_of
from shared.config.schema import Config
from shared.directions import DIRECTIONS, Directions
from shared.directions.low_precision import lower_precision
from shared.modes.mode import mode_of
from shared.optimizers import OPTIMIZERS, Optimizer, restore_
from shared.optimizers.gradient import (
    DenseGradient,
    Gradient,
    SumGradient,
    ZerothOrderGradient,
    coefficients_of,
)
from shared.protocol.entry import Entry
from shared.randomness.streams import SHARED_SLOT, Key, direction_keys, rounding_key
from shared.replica.replay import PASS_KEYS, Step, add_steps_, add_steps_with_digests_
from shared.replica.stochastic_rounding import add_, step_

PIECE = 1 << 25  # bytes of a card that are hashed at a time
GUIDANCE = "guidance"  # the name of the last dense gradient among a snapshot's tensors


def digest_of(tensor: Tensor, seed: int = 0) -> bytes:
    """Return 16 bytes that name the bits of a tensor (XXH3-128: it finds faults, not forgery).

    From a card the bits come piece by piece through one buffer of pinned memory: a copy of them all
    in new memory would take several times as long as hashing them.
    """
    digest, bits = xxhash.xxh3_128(seed=seed), tensor.detach().view(-1).view(torch.uint8)
    if bits.is_cuda:
        buffer = torch.empty(min(PIECE, bits.numel()), dtype=torch.uint8, pin_memory=True)
        hash_through(digest, bits, buffer)
    else:
        digest.update(bits.cpu().numpy().data)
    return digest.digest()


def hash_through(digest: xxhash.xxh3_128, bits: Tensor, buffer: Tensor) -> None:
    """Update a digest with ``bits`` (n,) of any device by way of ``buffer`` (m,), both uint8."""
    for part in torch.split(bits, buffer.numel() or 1):
        own = buffer[: part.numel()]
        own.copy_(part)  # returns when the bits are there
        digest.update(own.numpy().data)


@dataclass
class Replica:
    """Parameters and optimizer state of a round.

    Invariant: after round t the parameters are a pure function of the base model and the entries
    1 to t, whichever process, device or number of threads computed them.
    """

    model: FlatModel
    directions: Directions
    optimizer: Optimizer
    seed: int
    queries: int
    eps: float
    codec: Codec  # of the entries' dense gradients
    guidance: Tensor | None = None  # (size,) the last dense gradient, if the mode reuses it
    round: int = 0  # of the last entry that was applied
    _digest: bytes = b""  # of the parameters at this round; empty: not computed yet

    @classmethod
    def of(cls, model: FlatModel, config: Config, *, steps: bool = True) -> "Replica":
        """A replica at round 0 of the run that ``config`` describes.

        One that does not take ``steps`` itself follows another, and keeps no optimizer's state.
        """
        if not steps:
            config = config.replace(optimizer="sgd", momentum=0.0, guidance="fresh")
        optimizer, family = OPTIMIZERS[config.optimizer.name], DIRECTIONS[config.zo.directions]
        mode = mode_of(config)  # averaged parameters: sites have stepped, by options of their own
        options = {} if mode.averages_parameters else arguments_of(optimizer, config.options)
        guided = mode.keeps_guidance(config)
        directions = family(model.layout, **arguments_of(family, config.options))
        return cls(
            model,
            lower_precision(directions, model.flat.dtype),
            optimizer(model.layout, model.flat.device, **options),
            config.training.seed,
            config.zo.queries,
            config.zo.eps,
            codec_of(config, model.layout),
            torch.zeros(model.layout.size, device=model.flat.device) if guided else None,
        )

    def apply(self, entries: Iterable[Entry]) -> None:
        """Take the step of each entry; skip entries that were applied before.

        Rounds whose steps only add directions are taken together, in one pass over the parameters.
        A rewind follows the round that it goes back to: a replica that is past that round must be
        brought there first, from a snapshot or the base model.

        Raises:
            GapError: an entry does not follow the replica's round, or its dense gradient was
                dropped from the ledger; nothing of it is applied.
        """
        for _ in self._apply(entries, with_digests=False):
            pass

    def apply_with_digests(self, entries: Iterable[Entry]) -> Iterator[tuple[int, bytes]]:
        """Do as ``apply`` does; yield each round with the digest of the parameters after it."""
        return self._apply(entries, with_digests=True)

    def _apply(self, entries: Iterable[Entry], with_digests: bool) -> Iterator[tuple[int, bytes]]:
        for batch in self._batch(entries):
            entry, digests, unchanged = batch[0], list[bytes](), b""
            if entry.back_to is not None:
                unchanged = self._digest
            elif self._adds(entry):
                digests = self._add_(batch, with_digests)
            else:
                key = rounding_key(self.seed, entry.round, SHARED_SLOT, 0)
                gradient, rate = self.gradient(entry), entry.learning_rate
                step_(self.optimizer, self.model.flat, gradient, rate, key)
                self.model.layout.clear_padding_(self.model.flat)
            self.set_round(batch[-1].round, unchanged)
            if with_digests:
                digests = digests or [self.digest()]
                self._digest = digests[-1]
                yield from zip((entry.round for entry in batch), digests, strict=True)

    def _batch(self, entries: Iterable[Entry]) -> Iterator[list[Entry]]:
        """Yield the entries that are new to this replica: one, or several that only add."""
        batch: list[Entry] = []
        at, keys = self.round, 0
        for entry in entries:
            if entry.round <= at:
                continue
            fault, count = _find_fault(entry, at), sum(len(s.differences) for s in entry.slots)
            if batch and (fault or not self._adds(entry) or keys + count > PASS_KEYS):
                yield batch
                batch, keys = [], 0
            if fault:
                raise GapError(fault)
            at = entry.round
            batch, keys = [*batch, entry], keys + count
            if not self._adds(entry):
                yield batch
                batch, keys = [], 0
        if batch:
            yield batch

    def _adds(self, entry: Entry) -> bool:
        """Tell whether an entry's step only adds directions to the parameters."""
        rounded = self.model.flat.dtype is not torch.float32 or entry.back_to is not None
        return self.optimizer.additive and not entry.guide and not rounded

    def _add_(self, batch: Sequence[Entry], with_digests: bool) -> list[bytes]:
        """Take steps that only add; return the digest after each if they had to be computed."""
        model, steps = self.model, [self._step_of(entry) for entry in batch]
        if with_digests and model.flat.is_cpu:
            return add_steps_with_digests_(model.flat, model.layout, self.directions, steps)
        if with_digests and len(steps) > 1:
            return [self._add_step_(step) for step in steps]
        add_steps_(model.flat, model.layout, self.directions, steps)
        return []

    def _step_of(self, entry: Entry) -> Step:
        estimate = self._estimate(entry)
        scales = [-entry.learning_rate * value for value in estimate.coefficients]
        return Step(estimate.keys, scales)

    def _add_step_(self, step: Step) -> bytes:
        add_steps_(self.model.flat, self.model.layout, self.directions, [step])
        return digest_of(self.model.flat)

    def gradient(self, entry: Entry) -> Gradient:
        """Return an entry's gradient: guide * its dense gradient + the estimate of its slots.

        Raises:
            GapError: the entry needs an earlier entry's dense gradient, which is not kept here.
        """
        estimate = self._estimate(entry)
        if not entry.guide:
            return estimate
        return SumGradient(DenseGradient(self._dense(entry)), entry.guide, estimate)

    def _estimate(self, entry: Entry) -> ZerothOrderGradient:
        """Return the two-point estimate of an entry, slot by slot."""
        keys: list[Key] = []
        coefficients: list[float] = []
        for slot in entry.slots:
            differences = slot.differences.astype(np.float64)
            keys += direction_keys(self.seed, entry.round, slot.slot, 0, len(differences))
            coefficients += coefficients_of(differences, self.eps, self.queries).tolist()
        return ZerothOrderGradient(self.directions, keys, coefficients)

    def _dense(self, entry: Entry) -> Tensor:
        """Return the entry's decoded gradient (size,), or else that of an earlier entry."""
        if not entry.payload:
            if self.guidance is None:
                raise GapError(f"round {entry.round} goes along a guidance that is not kept here")
            return self.guidance
        dense = self.codec.decode(entry.payload).to(self.model.flat.device)
        if self.guidance is not None:
            self.guidance.copy_(dense)
        return dense

    def drift_(self, keys: list[Key], coefficients: list[float], rounding: Key) -> None:
        """Add coefficients[k] * z(keys[k]) to the parameters, which the caller keeps (``keep``).

        ``rounding`` is the key of the bits that round parameters in bfloat16.
        """
        estimate = ZerothOrderGradient(self.directions, keys, coefficients)
        add_(self.model.flat, estimate, 1.0, rounding)
        self._digest = b""

    @contextmanager
    def keep(self) -> Iterator[None]:
        """Let the parameters drift meanwhile; they are put back at the end."""
        saved, digest = self.model.flat.clone(), self._digest
        try:
            yield
        finally:
            self.model.flat.copy_(saved)
            self._digest = digest

    def follow_(self, other: "Replica") -> None:
        """Take over the bits of another replica's parameters; it knows its digest already.

        Raises:
            DivergedError: they are not equal afterwards.
        """
        if self.digest() == other.digest():
            return
        self.model.flat.copy_(other.model.flat)
        self.set_round(other.round)
        self.check(other.digest())

    def state(self) -> Mapping[str, Tensor]:
        """Return what a snapshot must hold beside the parameters: live tensors by name."""
        guidance = {} if self.guidance is None else {GUIDANCE: self.guidance}
        return {**self.optimizer.state(), **guidance}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy what ``state()`` returned into this replica.

        Raises:
            SnapshotError: a tensor is missing or has another shape; nothing is copied.
        """
        restore_(self.state(), state)

    def digest(self) -> bytes:
        """Return 16 bytes that are equal in two replicas if their parameters have the same bits."""
        if not self._digest:
            self._digest = digest_of(self.model.flat)
        return self._digest

    def set_round(self, round_: int, digest: bytes = b"") -> None:
        """Note that the parameters are now those of ``round_``, and their digest if it is known."""
        self.round, self._digest = round_, digest

    def check(self, digest: bytes) -> None:
        """Compare the parameters' digest with a recorded one.

        Raises:
            DivergedError: the digests differ.
        """
        check_digest(self.round, self.digest(), digest)


def check_digest(round_: int, digest: bytes, recorded: bytes | None) -> None:
    """Compare a round's digest with the recorded one, if there is one.

    Raises:
        DivergedError: the digests differ.
    """
    if recorded is not None and digest != recorded:
        raise DivergedError(
            f"round {round_}: digest {recorded.hex()} expected, this replica has {digest.hex()}"
        )


def _find_fault(entry: Entry, at: int) -> str:
    """Return why an entry cannot be applied after round ``at``, or an empty string."""
    if entry.follows != at:
        return f"entry of round {at + 1} expected, got {entry.round}, which follows {entry.follows}"
    if entry.dropped:
        return (
            f"the dense gradient of round {entry.round} was dropped: a snapshot of that "
            "round or a later one is needed to go on from"
        )
    return ""
