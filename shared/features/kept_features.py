"""Features of examples, computed once in a run by a frozen model and then only looked up."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import xxhash
from torch import Tensor, nn

from shared.features.passes import repeat_to_fill, split_into_passes
from shared.features.store import KeptTensors, example_keys

LOG = logging.getLogger("dandelion")
PASS_TOKENS = 1 << 10  # of one forward pass on the CPU: matrix products are efficient from here on
CUDA_PASS_TOKENS = 1 << 15
NOTICE_S = 10.0  # work of more seconds is announced

# (module, tokens (B, T), lengths (B,)) -> numbers (B, n) of each example, float32
Compute = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass
class KeptFeatures:
    """Rows of numbers by example; the batches that were asked for last are kept assembled.

    Numbers depend on the tokens of a text alone, not on what is beside it in a batch, so a row is
    known by the digest of its tokens.
    """

    compute: Compute
    open_store: Callable[[nn.Module], KeptTensors]
    most_bytes: int  # of assembled batches
    finish: Callable[[nn.Module, Tensor], Tensor]  # applied to a batch before it is assembled
    _store: KeptTensors | None = field(default=None, repr=False)
    _batches: OrderedDict[bytes, Tensor] = field(default_factory=OrderedDict, repr=False)
    _bytes: int = 0

    def rows(self, module: nn.Module, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The numbers (B, n) of texts (B, T), on the texts' device; missing ones are computed."""
        name = xxhash.xxh3_128(str(tuple(tokens.shape)).encode())
        name.update(tokens.cpu().contiguous().numpy().data)
        key = name.digest()
        if (batch := self._batches.get(key)) is not None:
            self._batches.move_to_end(key)
            return batch
        # tensors of inference mode could not be read by a backward pass to the readout
        with torch.inference_mode(False), torch.no_grad():
            batch = self.finish(module, self.look_up(module, tokens, lengths).to(tokens.device))
        self._remember(key, batch)
        return batch

    def _remember(self, key: bytes, batch: Tensor) -> None:
        size = batch.numel() * batch.element_size()
        if size > self.most_bytes:
            return
        self._batches[key] = batch
        self._bytes += size
        while self._bytes > self.most_bytes:
            _, oldest = self._batches.popitem(last=False)
            self._bytes -= oldest.numel() * oldest.element_size()

    def look_up(self, module: nn.Module, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The numbers (B, n) of texts (B, T) as they were computed, on the CPU."""
        if self._store is None:
            self._store = self.open_store(module)
        keys = example_keys(tokens.cpu().numpy())
        rows = self._store.get(keys)
        first_of: dict[bytes, int] = {}
        for number, (key, row) in enumerate(zip(keys, rows, strict=True)):
            if row is None:
                first_of.setdefault(key, number)
        if first_of:
            fresh: dict[bytes, Tensor] = {}
            for part in self._compute_rows(module, tokens, lengths, first_of):
                fresh |= part
            rows = [fresh[k] if row is None else row for k, row in zip(keys, rows, strict=True)]
        return torch.stack([row for row in rows if row is not None])

    def prepare(self, module: nn.Module, tokens: Tensor, lengths: Tensor) -> None:
        """Compute the numbers of texts (n, T) that are not kept yet, as far as there is room."""
        if self._store is None:
            self._store = self.open_store(module)
        keys = example_keys(tokens.cpu().numpy())
        missing: dict[bytes, int] = {}
        for number in self._store.missing(keys):
            missing.setdefault(keys[number], number)
        with torch.inference_mode(False), torch.no_grad():
            for part in self._compute_rows(module, tokens, lengths, missing):
                if self._store.missing([*part]):
                    return  # no room: computed again when they are needed

    def _compute_rows(
        self, module: nn.Module, tokens: Tensor, lengths: Tensor, missing: Mapping[bytes, int]
    ) -> Iterator[dict[bytes, Tensor]]:
        """Compute the texts of some rows, in passes of texts of one length, and store them.

        Each pass is stored at once, so that a process that is stopped loses one pass.

        Yields:
            The numbers of a pass, by the keys of its texts.
        """
        most = CUDA_PASS_TOKENS if tokens.is_cuda else PASS_TOKENS
        keys, sizes = [*missing], [int(lengths[number]) for number in missing.values()]
        progress = Progress(f"features of {len(keys):,} examples", sum(sizes))
        for part in [*split_into_passes(sizes, most, mixed=tokens.is_cuda)][::-1]:
            longest = sizes[part[-1]]
            filled = part if tokens.is_cuda else repeat_to_fill(part)
            chosen = torch.tensor([missing[keys[n]] for n in filled], device=tokens.device)
            with torch.inference_mode():
                values = self.compute(module, tokens[chosen, :longest], lengths[chosen])
            kept = list(values[: len(part)].float().cpu())
            stored = self._store_rows([keys[place] for place in part], kept)
            progress.advance(sum(sizes[place] for place in part))
            yield stored

    def _store_rows(self, keys: Sequence[bytes], rows: Sequence[Tensor]) -> dict[bytes, Tensor]:
        """Store rows; return them as they will be read later, rounded if they are kept so."""
        assert self._store is not None
        self._store.put(keys, rows)
        stored = self._store.get(keys)
        return {
            key: row.clone() if old is None else old
            for key, old, row in zip(keys, stored, rows, strict=True)
        }


class Progress:
    """Says how far work is that is done once for all rounds, if it takes more than some seconds."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._started = self._spoke = time.monotonic()

    def advance(self, amount: int) -> None:
        """Note that so much more of ``total`` is done."""
        self._done += amount
        now = time.monotonic()
        if now - self._spoke < NOTICE_S or self._done >= self._total:
            return
        self._spoke = now
        left = (now - self._started) * (self._total / self._done - 1)
        share = 100 * self._done / self._total
        LOG.warning("%s, once for all rounds: %.0f %%, about %.0f s left", self._what, share, left)
