"""A copy of the model that follows the ledger, entry by entry, with the same bits everywhere."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

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
from shared.optimizers import OPTIMIZERS, Optimizer
from shared.optimizers.gradient import DenseGradient, Gradient, SumGradient, ZerothOrderGradient
from shared.optimizers.restore import restore_
from shared.protocol.entry import Entry
from shared.randomness.streams import Key
from shared.replica.replay import KEYS, Step, add_proven_steps_, add_steps_
from shared.replica.stochastic_rounding import add_, step_

SHARED_SLOT = 0
GUIDANCE = "guidance"  # the name of the last dense gradient among a snapshot's tensors


def keys_of(seed: int, round_: int, slot: int, first: int, count: int) -> list[Key]:
    """The keys ``first`` to ``first + count`` of a slot in a round, in the order of application."""
    return [Key(seed, round_, slot, index) for index in range(first, first + count)]


def digest_of(tensor: Tensor, seed: int = 0) -> bytes:
    """16 bytes that name the bits of a tensor (XXH3-128: finds faults, stops no forger)."""
    bytes_ = tensor.detach().cpu().view(-1).view(torch.uint8)
    return xxhash.xxh3_128_digest(bytes_.numpy().data, seed)


@dataclass
class Replica:
    """Parameters, optimizer state and the round that they are of.

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
    guidance: Tensor | None = None  # (size,) the last dense gradient, where a mode reuses it
    round: int = 0  # the last entry that is applied
    _digest: bytes = b""  # of the parameters at this round; empty: not computed yet

    @classmethod
    def of(cls, model: FlatModel, config: Config) -> "Replica":
        """A replica at round 0 of the run that ``config`` describes."""
        optimizer, family = OPTIMIZERS[config.optimizer.name], DIRECTIONS[config.zo.directions]
        mode = mode_of(config)  # averaged parameters: sites have stepped, by options of their own
        options = {} if mode.averages_parameters else arguments_of(optimizer, config.options)
        guided = mode.keeps_guidance(config)
        directions = family(model.layout, **arguments_of(family, config.options))
        return cls(
            model,
            lower_precision(directions, model.flat.dtype),
            optimizer(model.layout, model.flat.device, **options),
            config.seed,
            config.queries,
            config.eps,
            codec_of(config, model.layout),
            torch.zeros(model.layout.size, device=model.flat.device) if guided else None,
        )

    def apply(self, entries: Iterable[Entry]) -> None:
        """Take the step of each entry; one that is applied already is passed over.

        Where steps are plain additions, many rounds are one pass over the parameters. A rewind
        follows the round that it goes back to: a replica that is past that round has to be brought
        there first, from a snapshot or the base model.

        Raises:
            GapError: an entry does not follow the replica's round, or its dense gradient was
                dropped from the ledger; nothing of it is applied.
        """
        for _ in self._through(entries, proving=False):
            pass

    def proven(self, entries: Iterable[Entry]) -> Iterator[tuple[int, bytes]]:
        """Do as ``apply`` does; yield each round, with the digest of the parameters after it."""
        return self._through(entries, proving=True)

    def _through(self, entries: Iterable[Entry], proving: bool) -> Iterator[tuple[int, bytes]]:
        for lot in self._lots(entries):
            entry, digests, kept = lot[0], list[bytes](), b""
            if entry.back_to is not None:
                kept = self._digest
            elif self._adds(entry):
                digests = self._add_(lot, proving)
            else:
                key = Key(self.seed, entry.round, SHARED_SLOT, 0)
                gradient, rate = self.gradient(entry), entry.learning_rate
                step_(self.optimizer, self.model.flat, gradient, rate, key)
                self.model.layout.clear_padding_(self.model.flat)
            self.moved(lot[-1].round, kept)
            if proving:
                digests = digests or [self.digest()]
                self._digest = digests[-1]
                yield from zip((entry.round for entry in lot), digests, strict=True)

    def _lots(self, entries: Iterable[Entry]) -> Iterator[list[Entry]]:
        """Entries that follow the replica's round: one, or some whose steps are plain additions."""
        lot: list[Entry] = []
        at, held = self.round, 0
        for entry in entries:
            if entry.round <= at:
                continue
            wrong, count = _wrong(entry, at), sum(len(g.differences) for g in entry.slots)
            if lot and (wrong or not self._adds(entry) or held + count > KEYS):
                yield lot
                lot, held = [], 0
            if wrong:
                raise GapError(wrong)
            at = entry.round
            lot, held = [*lot, entry], held + count
            if not self._adds(entry):
                yield lot
                lot, held = [], 0
        if lot:
            yield lot

    def _adds(self, entry: Entry) -> bool:
        """Whether an entry's step is directions added to the parameters, and nothing else."""
        rounded = self.model.flat.dtype is not torch.float32 or entry.back_to is not None
        return self.optimizer.additive and not entry.guide and not rounded

    def _add_(self, lot: Sequence[Entry], proving: bool) -> list[bytes]:
        """Take steps of plain additions; the digest after each, where asked for and at hand."""
        steps = []
        for entry in lot:
            found = self._measured(entry)
            scales = [-entry.learning_rate * value for value in found.coefficients]
            steps.append(Step(found.keys, scales))
        model = self.model
        if proving and model.flat.is_cpu:
            return add_proven_steps_(model.flat, model.layout, self.directions, steps)
        if proving and len(steps) > 1:
            return [self._added(step) for step in steps]
        add_steps_(model.flat, model.layout, self.directions, steps)
        return []

    def _added(self, step: Step) -> bytes:
        add_steps_(self.model.flat, self.model.layout, self.directions, [step])
        return digest_of(self.model.flat)

    def gradient(self, entry: Entry) -> Gradient:
        """What an entry says of the gradient: its dense part, and the estimate of its groups."""
        measured = self._measured(entry)
        if not entry.guide:
            return measured
        dense = self._dense(entry)
        return SumGradient(DenseGradient(dense), entry.guide, measured)

    def _measured(self, entry: Entry) -> ZerothOrderGradient:
        """The estimate (1/q) * sum of difference / 2eps * z, group by group."""
        keys: list[Key] = []
        coefficients: list[float] = []
        for group in entry.slots:
            keys += keys_of(self.seed, entry.round, group.slot, 0, len(group.differences))
            scale = 2 * self.eps * self.queries
            coefficients += [float(value) / scale for value in group.differences]
        return ZerothOrderGradient(self.directions, keys, coefficients)

    def _dense(self, entry: Entry) -> Tensor:
        """The decoded gradient that an entry brings, or the last one that was brought."""
        if not entry.payload:
            if self.guidance is None:
                raise GapError(f"round {entry.round} goes along a guidance that is not kept here")
            return self.guidance
        dense = self.codec.decode(entry.payload).to(self.model.flat.device)
        if self.guidance is not None:
            self.guidance.copy_(dense)
        return dense

    def drift_(self, keys: list[Key], coefficients: list[float], step: Key) -> None:
        """Add coefficients[k] * z(keys[k]) to the parameters, which whoever calls puts back.

        ``step`` names what is drawn to round them, where they are rounded.
        """
        add_(self.model.flat, ZerothOrderGradient(self.directions, keys, coefficients), 1.0, step)

    def state(self) -> Mapping[str, Tensor]:
        """What a snapshot must hold beside the parameters: live tensors by name."""
        kept = {} if self.guidance is None else {GUIDANCE: self.guidance}
        return {**self.optimizer.state(), **kept}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state()`` gave; SnapshotError where it does not fit."""
        restore_(self.state(), state)

    def digest(self) -> bytes:
        """16 bytes that two replicas share exactly when their parameters are the same bits."""
        if not self._digest:
            self._digest = digest_of(self.model.flat)
        return self._digest

    def moved(self, round_: int, digest: bytes = b"") -> None:
        """Say that the parameters are now those of ``round_``; their digest, where it is known."""
        self.round, self._digest = round_, digest

    def check(self, digest: bytes) -> None:
        """Compare with a recorded digest.

        Raises:
            DivergedError: the parameters are others.
        """
        check_digest(self.round, self.digest(), digest)


def check_digest(round_: int, found: bytes, recorded: bytes | None) -> None:
    """Compare a round's digest with the recorded one, where there is one.

    Raises:
        DivergedError: the parameters are others.
    """
    if recorded is not None and found != recorded:
        raise DivergedError(
            f"round {round_}: digest {recorded.hex()} expected, this replica has {found.hex()}"
        )


def _wrong(entry: Entry, at: int) -> str:
    """Why an entry cannot be applied after round ``at``; nothing where it can."""
    if entry.follows != at:
        return f"entry of round {at + 1} expected, got {entry.round}, which follows {entry.follows}"
    if entry.dropped:
        return (
            f"the dense gradient of round {entry.round} was dropped: a snapshot of that "
            "round or a later one is needed to go on from"
        )
    return ""
