"""Forward passes that begin at a cut: the activations before the first trained block are kept.

They are computed once per example and run. Compare ``shared/estimation/activation_cache.py``, which
caches what is frozen for one batch only.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shared.base.errors import ConfigError
from shared.base.flat import FlatModel
from shared.config.run_sections import RunSettings
from shared.features.kept_features import Progress
from shared.features.passes import split_into_passes
from shared.features.prefix import FrozenPrefix, NoPrefixError, count_frozen_blocks, find_prefix
from shared.features.store import KeptTensors, example_keys, features_name

LOG = logging.getLogger("dandelion")
PASS_TOKENS = {"cpu": 1 << 8, "cuda": 1 << 14}  # of one pass of the prefix: enough to be efficient
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # relative, of a loss with and without
CHECKED = 2  # examples whose losses are compared
MIB = 1 << 20
# What a module of another kind than expected may raise while it is tried whether it can be cut.
FAILURES = (NoPrefixError, RuntimeError, TypeError, ValueError, LookupError, AttributeError)

Forward = Callable[..., Any]
Each = Callable[[nn.Module, Tensor], Tensor]  # (module, rows) -> losses (B,); one forward pass


class _EndOfPrefix(Exception):  # noqa: N818  (a signal, no error)
    """Ends a forward pass after the last frozen block."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output


@dataclass
class KeptPrefix:
    """Lets forward passes of known rows begin after the frozen blocks of a model.

    Losses agree with those of whole passes within 1e-5 relative with ``keep-dtype = float32``, not
    to the bit, since an example may be in another batch. The first rows are tried with and without;
    a model for which that fails goes on without.

    Attributes:
        model: its frozen blocks are found by ``find_prefix``.
        each: the task's loss of each example.
        labels: whether a row begins with a class, before its tokens.
        tokenizer: its identity.
        run: limits and dtype of what is kept.
        lender: on another device of a run, that of the first: activations are taken from there.
    """

    model: FlatModel
    each: Each
    labels: bool
    tokenizer: str
    run: RunSettings
    lender: "KeptPrefix | None" = None
    _is_possible: bool | None = field(default=None, init=False)
    _prefix: FrozenPrefix = field(init=False, repr=False)
    _store: KeptTensors = field(init=False, repr=False)
    _last: tuple[bytes, Tensor] | None = field(default=None, init=False, repr=False)
    _lent: dict[bytes, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def bytes_in_memory(self) -> int:
        """What the kept activations of this process take, without what is in files."""
        return self._store.memory_used if self._is_possible else 0

    @contextmanager
    def at(self, rows: Tensor) -> Iterator[None]:
        """Let passes of the task's ``rows`` begin at the cut while this is active.

        Their activations are computed if they are not kept yet. Parameters may be perturbed.
        """
        if not self._can_cut(rows):
            yield
            return
        with torch.inference_mode(False), torch.no_grad():
            activations = self._activations(rows)
        with self._begin_with(activations):
            yield

    def prepare(self, rows: Tensor) -> None:
        """Compute the activations of all ``rows`` that are not kept yet, as far as there is room.

        Says in the log how far it is if it takes long.
        """
        if not len(rows) or not self._can_cut(rows):
            return
        with torch.inference_mode(False), torch.no_grad():
            tokens = self._tokens(rows)
            keys = example_keys(tokens.numpy())
            for part in self._compute(rows, self._store.missing(keys)):
                if self._store.missing([keys[at] for at in part]):
                    return  # no room: computed again when they are needed

    @contextmanager
    def lend(self, batches: Iterable[Tensor]) -> Iterator[None]:
        """Let other devices' passes of these batches begin at the cut while this is active.

        What is not kept yet is computed here, batch by batch, as one device alone would come to it.

        Raises:
            ConfigError: they take more than ``keep-memory``.
        """
        try:
            with torch.inference_mode(False), torch.no_grad():
                for rows in batches:
                    if not self._can_cut(rows):
                        break
                    self._lent |= self._fetch(rows, example_keys(self._tokens(rows).numpy()))
                    self._check_lent()
            yield
        finally:
            self._lent.clear()

    def _check_lent(self) -> None:
        size = sum(tensor.nbytes for tensor in self._lent.values())
        if size > self.run.keep_memory * MIB:
            raise ConfigError(
                f"keep-memory of at least {-(-size // MIB)} MiB expected, since several devices "
                f"share what is kept of a step's batches, got {self.run.keep_memory}"
            )

    def _can_cut(self, rows: Tensor) -> bool:
        if self._is_possible is None:
            with torch.inference_mode(False), torch.no_grad():
                first = rows[:CHECKED]
                self._is_possible = self._borrow(first) if self.lender else self._try(first)
        return self._is_possible

    def _borrow(self, rows: Tensor) -> bool:
        """Set up for what the lender keeps of its own model, which is equal to this one."""
        if self.lender is None or not self.lender._is_possible:
            return False
        on_device = rows.to(self.model.flat.device)
        self._prefix = find_prefix(self.model, lambda: self.each(self.model.module, on_device))
        return True

    def _try(self, rows: Tensor) -> bool:
        """Set up for the model; whether losses of ``rows`` are equal with and without."""
        allowed = self.run.keep_memory or self.run.keep_disk
        if not allowed or not count_frozen_blocks(self.model):
            return False
        module, on_device = self.model.module, rows.to(self.model.flat.device)
        try:
            self._prefix = find_prefix(self.model, lambda: self.each(module, on_device))
            plain = self.each(module, on_device)
            with self._begin_with(self._pad(self._run_prefix(rows))):
                ours = self.each(module, on_device)
            if not torch.allclose(ours, plain, rtol=TOLERANCE[self.model.flat.dtype]):
                raise NoPrefixError(f"a loss would be {ours.tolist()}, not {plain.tolist()}")
        except FAILURES as error:
            LOG.info("activations before the trained blocks are not kept: %s", error)
            return False
        self._store = self._open_store()
        return True

    def _open_store(self) -> KeptTensors:
        """The store of this cut of this model, with this tokenizer."""
        prefix, dtype = self._prefix, self.model.flat.dtype
        what = f"output of block {len(prefix.blocks)} of {prefix.total}, {dtype}"
        name = features_name(self.model.module, prefix.frozen, self.tokenizer, what)
        limits = self.run.keep_memory * MIB, self.run.keep_disk * MIB
        return KeptTensors(name, *limits, getattr(torch, self.run.keep_dtype))

    def _tokens(self, rows: Tensor) -> Tensor:
        """The tokens (B, T) of rows on the CPU, -1 after the end of a text."""
        return rows[:, int(self.labels) :].cpu()

    def _activations(self, rows: Tensor) -> Tensor:
        """Activations (B, T, h) at the cut of rows; padding is zero."""
        keys = example_keys(self._tokens(rows).numpy())
        name = b"".join(keys)
        if self._last is None or self._last[0] != name:
            self._last = None  # frees it before the next is made
            self._last = name, self._assemble(rows, keys)
        return self._last[1]

    def _assemble(self, rows: Tensor, keys: Sequence[bytes]) -> Tensor:
        """Activations of rows as one batch; equal examples are fetched once."""
        lent = self._lent if self.lender is None else self.lender._lent
        is_lent = self.lender is not None or all(key in lent for key in keys)
        each = lent if is_lent else self._fetch(rows, keys)
        firsts = dict.fromkeys(keys)
        padded = self._pad([each[key] for key in firsts])
        if len(firsts) == len(keys):
            return padded
        places = {key: place for place, key in enumerate(firsts)}
        return padded[[places[key] for key in keys]]

    def _fetch(self, rows: Tensor, keys: Sequence[bytes]) -> dict[bytes, Tensor]:
        """Kept and new activations (T_j, h) of rows on the CPU, each example's once, by its key."""
        firsts: dict[bytes, int] = {}
        for at, key in enumerate(keys):
            firsts.setdefault(key, at)
        kept = dict(zip(firsts, self._store.get([*firsts]), strict=True))
        absent = [firsts[key] for key, tensor in kept.items() if tensor is None]
        new: dict[bytes, Tensor] = {}
        for part in self._compute(rows, absent):
            new |= {keys[number]: tensor for number, tensor in part.items()}
        return {key: new[key] if each is None else each for key, each in kept.items()}

    def _compute(self, rows: Tensor, numbers: Sequence[int]) -> Iterator[Mapping[int, Tensor]]:
        """Run the prefix on some of the rows, short ones first; keep and yield what it gives."""
        tokens = self._tokens(rows)
        lengths = (tokens >= 0).sum(1).tolist()
        progress = Progress(f"activations of {len(numbers):,} examples", len(numbers))
        most = PASS_TOKENS[self.model.flat.device.type]
        mixed = self.model.flat.is_cuda
        for places in split_into_passes([lengths[at] for at in numbers], most, mixed=mixed):
            part = [numbers[place] for place in places]
            new = self._run_prefix(rows[part])
            dtype = getattr(torch, self.run.keep_dtype)
            rounded = [tensor.to(dtype).float() for tensor in new]  # as it is when it is read
            self._store.put(example_keys(tokens[part].numpy()), rounded)
            progress.advance(len(part))
            yield dict(zip(part, rounded, strict=True))

    def _run_prefix(self, rows: Tensor) -> list[Tensor]:
        """The activations (T_j, h) of each row after the last frozen block, on the CPU."""
        lengths = (self._tokens(rows) >= 0).sum(1).tolist()
        last = self._prefix.blocks[-1]

        def stop(forward: Forward) -> Forward:
            def call(*args: Any, **named: Any) -> Any:  # noqa: ANN401
                raise _EndOfPrefix(forward(*args, **named))

            return call

        try:
            with _replace_forward({last: stop(last.forward)}):
                self.each(self.model.module, rows.to(self.model.flat.device))
        except _EndOfPrefix as end:
            hidden = end.output
        else:
            raise NoPrefixError("its last frozen block is not called as a module")
        if not isinstance(hidden, Tensor) or hidden.dim() != 3 or len(hidden) != len(rows):
            raise NoPrefixError(f"a block's output is no batch of activations: {type(hidden)}")
        return [
            own[:length].to("cpu", torch.float32, copy=True)
            for own, length in zip(hidden, lengths, strict=True)
        ]

    def _pad(self, tensors: Sequence[Tensor]) -> Tensor:
        """Activations (T_j, h) of examples as one batch of the model's dtype and device."""
        flat = self.model.flat
        return nn.utils.rnn.pad_sequence([*tensors], batch_first=True).to(flat.device, flat.dtype)

    @contextmanager
    def _begin_with(self, activations: Tensor) -> Iterator[None]:
        """Let the frozen blocks hand their input on, and the last return ``activations``."""

        def enter(*args: Any, **named: Any) -> Tensor:  # noqa: ANN401
            given = _states_of(args, named)
            if given.shape != activations.shape:
                raise RuntimeError(
                    f"a pass of {tuple(activations.shape)} activations at the cut expected, got "
                    f"{tuple(given.shape)}"
                )
            return activations

        *passed, last = self._prefix.blocks
        with _replace_forward({**dict.fromkeys(passed, _hand_on), last: enter}):
            yield


@contextmanager
def _replace_forward(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Give modules another ``forward`` of their own for a while."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, own in before.items():
            if own is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = own


def _hand_on(*args: Any, **named: Any) -> Tensor:  # noqa: ANN401
    return _states_of(args, named)


def _states_of(args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """The hidden states among a block's arguments."""
    hidden: Tensor = args[0] if args else named["hidden_states"]
    return hidden
