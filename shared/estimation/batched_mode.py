"""A torch function mode in which each group of a batch meets parameters of its own."""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode, resolve_name

from shared.base.errors import ConfigError
from shared.estimation.batched_parameters import BatchedParameters
from shared.estimation.blockwise import FlatParameter
from shared.estimation.interception import reads_numbers

Function = Callable[..., Any]
ELEMENTWISE = {
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), operator.mul),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), operator.add),
}


@dataclass(frozen=True, slots=True)
class Named:
    """A trainable parameter and what the module calls it."""

    name: str
    held: FlatParameter


@dataclass(frozen=True, slots=True)
class Head:
    """What goes into the last layer (G·B, T, C), kept so that logits are made a chunk at a time."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


class BatchedMode(TorchFunctionMode):
    """While active, a batch (G·B, …) of G groups of B examples meets θ + s_g·z_g, group by group.

    Products, embeddings, norms, and products and sums with a vector are known; any other function
    that is handed a trainable parameter is refused by name. The product with ``last`` is put off:
    it returns ``stand_in``, which takes no memory, and leaves in ``head`` what it was given.
    """

    def __init__(
        self, groups: BatchedParameters, known: Mapping[int, Named], batch: int, last: Tensor | None
    ) -> None:
        super().__init__()
        self.groups, self._known, self._batch, self._last = groups, known, batch, last
        self.head: Head | None = None
        self.stand_in: Tensor | None = None
        self._special: dict[Function, Function] = {
            F.linear: self._linear,
            F.embedding: self._embedding,
            F.layer_norm: self._layer_norm,
            F.rms_norm: self._rms_norm,
            torch.addmm: self._addmm,
            **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.__matmul__), self._mm),
        }

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Call ``func`` with every group's own parameters where it is handed trainable ones."""
        named = kwargs or {}
        if self._last is not None and func is F.linear and args[1] is self._last:
            return self._put_off(*args, **named)
        met = self._met((args, named))
        if met is None or not reads_numbers(func):
            return func(*args, **named)
        result = NotImplemented
        if func in ELEMENTWISE and not named and len(args) == 2:
            result = self._elementwise(ELEMENTWISE[func], *args)
        elif func in self._special:
            result = self._special[func](*args, **named)
        if result is NotImplemented:
            raise ConfigError(
                f"parallel-queries: {resolve_name(func)} on parameter {met.name!r} "
                f"{met.held.shape} cannot be batched; set parallel-queries = 1"
            )
        return result

    def _met(self, value: Any) -> Named | None:  # noqa: ANN401
        """The first trainable parameter in ``value``, or in a container there."""
        if isinstance(value, Tensor):
            return self._known.get(id(value))
        if isinstance(value, dict):
            value = tuple(value.values())
        if isinstance(value, (tuple, list)):
            for item in value:
                if (found := self._met(item)) is not None:
                    return found
        return None

    def _put_off(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:  # noqa: ANN401
        if self.head is not None:
            return NotImplemented
        self.head = Head(input, weight, bias)
        self.stand_in = input.new_zeros(()).expand(*input.shape[:-1], weight.shape[0])
        return self.stand_in

    def grouped(self, x: Tensor) -> Tensor | None:
        """``x`` (G·B, …, k) as (G, R, k); None where its first axis is no batch of all groups."""
        count = len(self.groups.keys)
        if x.dim() < 2 or x.shape[0] % count:
            return None
        return x.reshape(count, -1, x.shape[-1])

    def multiplied(self, x: Tensor, weight: Tensor, bias: Tensor | None, inner: int) -> Any:  # noqa: ANN401
        """``x`` (…, k) times a matrix whose axis ``inner`` is k, plus a bias, group by group."""
        flat, held = self.grouped(x), self._held(weight)
        if flat is None or held is None or len(held.shape) != 2 or flat.dtype != weight.dtype:
            return NotImplemented
        shift = None if bias is None else self._vector(bias)
        if shift is not None and shift.dim() == 1:
            shift = shift.expand(len(flat), 1, -1)
        return self.groups.product(flat, held, inner, shift).view(*x.shape[:-1], -1)

    def _added(self, out: Tensor, bias: Tensor) -> Tensor:
        held = self._held(bias)
        return out.add_(bias if held is None else self.groups.stack(held)[:, None])

    def _held(self, value: Any) -> FlatParameter | None:  # noqa: ANN401
        found = self._known.get(id(value))
        return None if found is None else found.held

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:  # noqa: ANN401
        if self._held(weight) is None:  # a frozen matrix with a trainable bias
            flat = self.grouped(F.linear(input, weight))
            if flat is None or bias is None:
                return NotImplemented
            return self._added(flat, bias).view(*input.shape[:-1], -1)
        return self.multiplied(input, weight, bias, inner=1)

    def _mm(self, input: Tensor, mat2: Tensor, bias: Tensor | None = None, **more: Any) -> Any:  # noqa: ANN401
        if more or self._held(input) is not None:
            return NotImplemented
        return self.multiplied(input, mat2, bias, inner=0)

    def _addmm(self, input: Tensor, mat1: Tensor, mat2: Tensor, **more: Any) -> Any:  # noqa: ANN401
        if self._held(mat2) is None:
            flat = self.grouped(mat1 @ mat2)
            return (
                NotImplemented
                if flat is None or more
                else self._added(flat, input).view(*mat1.shape[:-1], -1)
            )
        return self._mm(mat1, mat2, input, **more)

    def _embedding(self, input: Tensor, weight: Tensor, *more: Any, **named: Any) -> Any:  # noqa: ANN401
        """Rows of each group's table; ids (T,) and (1, T) are the same for all of a batch."""
        held, count = self._held(weight), len(self.groups.keys)
        limited = len(more) > 1 or named.get("max_norm") is not None
        if held is None or limited or input.dim() not in (1, 2):
            return NotImplemented
        if input.dim() == 1 or input.shape[0] == 1:
            ids = input.reshape(1, -1).expand(count, -1)
            rows = self.groups.rows(ids.contiguous(), held)
            return rows.repeat_interleave(self._batch, 0)
        if input.shape[0] != count * self._batch:
            return NotImplemented
        return self.groups.rows(input.reshape(count, -1), held).view(*input.shape, -1)

    def _layer_norm(
        self,
        input: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Any:  # noqa: ANN401
        flat = self.grouped(F.layer_norm(input, normalized_shape, eps=eps))
        return self._scaled(input, flat, weight, bias)

    def _rms_norm(
        self,
        input: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None = None,
        eps: float | None = None,
    ) -> Any:  # noqa: ANN401
        flat = self.grouped(F.rms_norm(input, normalized_shape, eps=eps))
        return self._scaled(input, flat, weight, None)

    def _scaled(
        self, input: Tensor, flat: Tensor | None, weight: Tensor | None, bias: Tensor | None
    ) -> Any:  # noqa: ANN401
        """What a norm made (G, R, k), times gains, plus a bias; both vectors."""
        if flat is None or any(t is not None and t.dim() != 1 for t in (weight, bias)):
            return NotImplemented
        gains, shift = self._vector(weight), self._vector(bias)
        if gains is not None and shift is not None:
            return torch.addcmul(shift, flat, gains).view(input.shape)
        out = flat if gains is None else flat * gains
        return (out if shift is None else out.add_(shift)).view(input.shape)

    def _vector(self, value: Tensor | None) -> Tensor | None:
        """Each group's vector (G, 1, k), or the frozen one that all groups share."""
        held = self._held(value)
        return value if held is None else self.groups.stack(held)[:, None]

    def _elementwise(self, operation: Function, first: Any, second: Any) -> Any:  # noqa: ANN401
        """A vector times or plus a batch, on either side."""
        vector, x = (first, second) if self._held(first) is not None else (second, first)
        if not isinstance(x, Tensor) or self._held(x) is not None or vector.dim() != 1:
            return NotImplemented
        flat = self.grouped(x)
        if flat is None or x.shape[-1] != len(vector):
            return NotImplemented
        return operation(flat, self._vector(vector)).view(x.shape)
