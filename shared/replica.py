"""A copy of the model that follows the ledger, entry by entry, with the same bits everywhere."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from inspect import signature

import torch
import xxhash
from torch import Tensor

from shared.codecs import Codec, codec_of
from shared.config import Config
from shared.directions import DIRECTIONS, Directions, Key
from shared.entry import Entry
from shared.errors import DivergedError, GapError
from shared.flat import FlatModel
from shared.gradient import DenseGradient, Gradient, SumGradient, ZerothOrderGradient
from shared.optimizers import OPTIMIZERS, Optimizer
from shared.optimizers.restore import restore_

SHARED_SLOT = 0
GUIDANCE = "guidance"  # the name of the last dense gradient among a snapshot's tensors


def keys_of(seed: int, round_: int, slot: int, first: int, count: int) -> list[Key]:
    """The keys ``first`` to ``first + count`` of a slot in a round, in the order of application."""
    return [Key(seed, round_, slot, index) for index in range(first, first + count)]


def digest_of(tensor: Tensor, seed: int = 0) -> bytes:
    """16 bytes that name the bits of a tensor (XXH3-128: finds faults, stops no forger)."""
    return xxhash.xxh3_128_digest(tensor.detach().cpu().view(-1).numpy().data, seed)


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
        optimizer = OPTIMIZERS[config.optimizer]
        values = asdict(config) | {"epsilon": config.adam_epsilon}
        if config.mode == "fedavg":  # sites decay their weights themselves; here they are averaged
            values["weight_decay"] = 0.0
        reused = config.mode == "instruct" and config.guidance == "reuse"
        known = set(signature(optimizer).parameters) & set(values) - {"device"}
        return cls(
            model,
            DIRECTIONS[config.directions](model.layout),
            optimizer(model.layout, model.flat.device, **{name: values[name] for name in known}),
            config.seed,
            config.queries,
            config.eps,
            codec_of(config, model.layout),
            torch.zeros_like(model.flat) if reused else None,
        )

    def apply(self, entries: Iterable[Entry]) -> None:
        """Take the step of each entry; one that is applied already is passed over.

        A rewind follows the round that it goes back to: a replica that is past that round has to be
        brought there first, from a snapshot or the base model.

        Raises:
            GapError: an entry does not follow the replica's round, or its dense gradient was
                dropped from the ledger; nothing of it is applied.
        """
        for entry in entries:
            if entry.round <= self.round:
                continue
            if entry.follows != self.round:
                raise GapError(
                    f"entry of round {self.round + 1} expected, got {entry.round}, which follows "
                    f"round {entry.follows}"
                )
            if entry.back_to is not None:
                self.moved(entry.round, self._digest)
                continue
            if entry.dropped:
                raise GapError(
                    f"the dense gradient of round {entry.round} was dropped: a snapshot of that "
                    "round or a later one is needed to go on from"
                )
            self.optimizer.step_(self.model.flat, self.gradient(entry), entry.learning_rate)
            self.model.layout.clear_padding_(self.model.flat)
            self.moved(entry.round)

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
        for group in entry.groups:
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
        mine = self.digest()
        if mine != digest:
            raise DivergedError(
                f"round {self.round}: digest {digest.hex()} expected, this replica has {mine.hex()}"
            )
