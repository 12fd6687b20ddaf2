"""A torch function mode that computes each point of a batch with parameters of its own."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import resolve_name

from shared.base.errors import ConfigError
from shared.estimation.batched_parameters import BatchedParameters
from shared.estimation.blockwise import FlatParameter
from shared.estimation.interception import Function, ParameterMode, reads_numbers

ELEMENTWISE = {
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), operator.mul),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), operator.add),
}


@dataclass(frozen=True, slots=True)
class DeferredProduct:
    """The input of the last layer (P·B, T, C), from which logits are made a chunk at a time."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    placeholder: Tensor  # what the module got for the logits; it takes no memory


class BatchedMode(ParameterMode):
    """Computes a batch (P·B, …) of P points with B examples each at θ + s_p·z_p, point by point.

    It knows products, embeddings, norms, and products and sums of a vector with a batch or a
    number. Any other function of a trainable parameter is refused by name. The product with
    ``last`` is not computed but stored in ``deferred``.
    """

    def __init__(
        self,
        parameters: BatchedParameters,
        known: Mapping[int, FlatParameter],
        batch: int,
        last: Tensor | None,
    ) -> None:
        super().__init__(known)
        self.parameters, self._batch, self._last = parameters, batch, last
        self.deferred: DeferredProduct | None = None
        self._special: dict[Function, Function] = {
            F.linear: self._linear,
            F.embedding: self._embedding,
            F.layer_norm: self._layer_norm,
            F.rms_norm: self._rms_norm,
            torch.addmm: self._addmm,
            **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.__matmul__), self._mm),
        }

    def call(self, func: Function, args: tuple[Any, ...], named: dict[str, Any]) -> Any:  # noqa: ANN401
        """Call ``func`` with every point's own parameters in place of trainable ones.

        Raises:
            ConfigError: ``func`` reads a trainable parameter and has no batched form.
        """
        if self._last is not None and func is F.linear and args[1] is self._last:
            return self._defer(*args, **named)
        parameter = self.find((args, named))
        if parameter is None or not reads_numbers(func):
            return func(*args, **named)
        result = NotImplemented
        if func is Tensor.float and parameter.values.dtype == torch.float32:
            return args[0]  # what it is already
        if func in ELEMENTWISE and not named and len(args) == 2:
            result = self._elementwise(ELEMENTWISE[func], *args)
        elif func in self._special:
            result = self._special[func](*args, **named)
        if result is NotImplemented:
            raise ConfigError(
                f"parallel-queries: {resolve_name(func)} on parameter {parameter.name!r} "
                f"{parameter.shape} cannot be batched; set parallel-queries = 1"
            )
        return result

    def _defer(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:  # noqa: ANN401
        if self.deferred is not None:
            return NotImplemented
        placeholder = input.new_zeros(()).expand(*input.shape[:-1], weight.shape[0])
        self.deferred = DeferredProduct(input, weight, bias, placeholder)
        return placeholder

    def split(self, x: Tensor) -> Tensor | None:
        """``x`` (P·B, …, k) as (P, R, k); None if its first axis is no batch of all points."""
        count = len(self.parameters.keys)
        if x.dim() < 2 or x.shape[0] % count:
            return None
        return x.reshape(count, -1, x.shape[-1])

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None, inner: int) -> Any:  # noqa: ANN401
        """``x`` (…, k) times a matrix whose axis ``inner`` is k, plus a bias, point by point."""
        flat, parameter = self.split(x), self.parameter(weight)
        if (
            flat is None
            or parameter is None
            or len(parameter.shape) != 2
            or flat.dtype != weight.dtype
        ):
            return NotImplemented
        shift = None if bias is None else self._vector(bias)
        if shift is not None and shift.dim() == 1:
            shift = shift.expand(len(flat), 1, -1)
        return self.parameters.product(flat, parameter, inner, shift).view(*x.shape[:-1], -1)

    def _add(self, out: Tensor, bias: Tensor) -> Tensor:
        parameter = self.parameter(bias)
        return out.add_(bias if parameter is None else self.parameters.stack(parameter)[:, None])

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:  # noqa: ANN401
        if self.parameter(weight) is None:  # a frozen matrix with a trainable bias
            flat = self.split(F.linear(input, weight))
            if flat is None or bias is None:
                return NotImplemented
            return self._add(flat, bias).view(*input.shape[:-1], -1)
        return self.multiply(input, weight, bias, inner=1)

    def _mm(self, input: Tensor, mat2: Tensor, bias: Tensor | None = None, **more: Any) -> Any:  # noqa: ANN401
        if more or self.parameter(input) is not None:
            return NotImplemented
        return self.multiply(input, mat2, bias, inner=0)

    def _addmm(self, input: Tensor, mat1: Tensor, mat2: Tensor, **more: Any) -> Any:  # noqa: ANN401
        if self.parameter(mat2) is None:
            flat = self.split(mat1 @ mat2)
            return (
                NotImplemented
                if flat is None or more
                else self._add(flat, input).view(*mat1.shape[:-1], -1)
            )
        return self._mm(mat1, mat2, input, **more)

    def _embedding(self, input: Tensor, weight: Tensor, *more: Any, **named: Any) -> Any:  # noqa: ANN401
        """Rows of each point's table; ids (T,) and (1, T) are the same for all of a batch."""
        parameter, count = self.parameter(weight), len(self.parameters.keys)
        limited = len(more) > 1 or named.get("max_norm") is not None
        if parameter is None or limited or input.dim() not in (1, 2):
            return NotImplemented
        if input.dim() == 1 or input.shape[0] == 1:
            ids = input.reshape(1, -1).expand(count, -1)
            rows = self.parameters.rows(ids.contiguous(), parameter)
            return rows.repeat_interleave(self._batch, 0)
        if input.shape[0] != count * self._batch:
            return NotImplemented
        return self.parameters.rows(input.reshape(count, -1), parameter).view(*input.shape, -1)

    def _layer_norm(
        self,
        input: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Any:  # noqa: ANN401
        flat = self.split(F.layer_norm(input, normalized_shape, eps=eps))
        return self._scale(input, flat, weight, bias)

    def _rms_norm(
        self,
        input: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None = None,
        eps: float | None = None,
    ) -> Any:  # noqa: ANN401
        flat = self.split(F.rms_norm(input, normalized_shape, eps=eps))
        return self._scale(input, flat, weight, None)

    def _scale(
        self, input: Tensor, flat: Tensor | None, weight: Tensor | None, bias: Tensor | None
    ) -> Any:  # noqa: ANN401
        """The output of a norm (P, R, k) times gains, plus a bias; both vectors."""
        if flat is None or any(t is not None and t.dim() != 1 for t in (weight, bias)):
            return NotImplemented
        gains, shift = self._vector(weight), self._vector(bias)
        if gains is not None and shift is not None:
            return torch.addcmul(shift, flat, gains).view(input.shape)
        out = flat if gains is None else flat * gains
        return (out if shift is None else out.add_(shift)).view(input.shape)

    def _vector(self, value: Tensor | None) -> Tensor | None:
        """Each point's vector (P, 1, k), or the frozen one that all points share."""
        parameter = self.parameter(value)
        return value if parameter is None else self.parameters.stack(parameter)[:, None]

    def _repeat(self, vectors: Tensor) -> Tensor:
        """Each point's vector (P, 1, k) for each of its examples, (P·B, 1, k)."""
        return vectors.repeat_interleave(self._batch, 0)

    def _elementwise(self, operation: Function, first: Any, second: Any) -> Any:  # noqa: ANN401
        """A vector times or plus a batch, on either side."""
        vector, x = (first, second) if self.parameter(first) is not None else (second, first)
        if isinstance(x, (int, float)) and vector.dim() == 1:
            return self._repeat(operation(self._vector(vector), x))
        if not isinstance(x, Tensor) or self.parameter(x) is not None or vector.dim() != 1:
            return NotImplemented
        flat = self.split(x)
        if flat is None or x.shape[-1] != len(vector):
            return NotImplemented
        return operation(flat, self._vector(vector)).view(x.shape)
