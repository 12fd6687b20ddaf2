"""Torch function modes that give torch functions perturbed parameters in place of θ."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from shared.estimation.blockwise import FlatParameter, PerturbedPoint

Function = Callable[..., Any]

# Properties that have a tensor's numbers; all others describe the tensor.
VIEWS = {getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "data", "real", "imag")}
METHODS = (
    *("size", "dim", "stride", "numel", "nelement", "ndimension", "element_size", "storage_offset"),
    *("is_contiguous", "is_floating_point", "is_complex", "is_inference", "get_device", "__len__"),
)
ABOUT = {  # functions that read no numbers
    *(getattr(Tensor, name) for name in METHODS),
    *(torch.numel, torch.is_floating_point, torch.is_complex, torch.is_inference),
}


def reads_numbers(func: Function) -> bool:
    """Whether a torch function reads a tensor's numbers, not only its shape, type or address."""
    return func not in ABOUT and (func.__name__ != "__get__" or func in VIEWS)


class ParameterMode(TorchFunctionMode, ABC):
    """A torch function mode that knows a module's trainable parameters by their ids."""

    def __init__(self, known: Mapping[int, FlatParameter]) -> None:
        super().__init__()
        self._known = known  # by the parameter's id

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Hand a torch function and its arguments to ``call``."""
        return self.call(func, args, kwargs or {})

    @abstractmethod
    def call(self, func: Function, args: tuple[Any, ...], named: dict[str, Any]) -> Any:  # noqa: ANN401
        """Compute what ``func`` returns at the mode's parameters."""

    def parameter(self, value: Any) -> FlatParameter | None:  # noqa: ANN401
        """The known parameter that ``value`` is, or None."""
        return self._known.get(id(value))

    def find(self, values: Iterable[Any]) -> FlatParameter | None:
        """The first known parameter among ``values`` or in a container there."""
        for value in values:
            parameter = self._known.get(id(value))
            if parameter is None and isinstance(value, (tuple, list)):
                parameter = self.find(value)
            elif parameter is None and isinstance(value, dict):
                parameter = self.find(value.values())
            if parameter is not None:
                return parameter
        return None


class Interception(ParameterMode):
    """Gives torch functions the values at ``point`` of the known parameters.

    It does not see what is no torch function, such as a scripted module. What a function writes
    into a parameter goes into a perturbed copy and is dropped with it: the parameter is never
    touched. The address of such a copy is refused, since it would outlive the copy.
    """

    def __init__(self, known: Mapping[int, FlatParameter]) -> None:
        super().__init__(known)
        self.point: PerturbedPoint | None = None
        self._special: dict[Function, Function] = {
            F.linear: self._linear,
            F.embedding: self._embedding,
            torch.addmm: self._addmm,
            torch.matmul: self._matmul,
            torch.mm: self._matmul,
            Tensor.matmul: self._matmul,
            Tensor.__matmul__: self._matmul,
        }

    def call(self, func: Function, args: tuple[Any, ...], named: dict[str, Any]) -> Any:  # noqa: ANN401
        """Call ``func`` with every known parameter among its arguments perturbed."""
        # F.layer_norm passes its parameters by name, nn.LSTM passes them in a list
        if self.find(args) is None and not (named and self.find(named.values())):
            return func(*args, **named)
        if not reads_numbers(func):
            return func(*args, **named)
        if func is Tensor.data_ptr:
            raise RuntimeError("a perturbed parameter has no address: use it in torch functions")
        if func in self._special:
            result = self._special[func](*args, **named)
            if result is not NotImplemented:
                return result
        return func(*self._replace(args), **self._replace(named))

    def _replace(self, value: Any) -> Any:  # noqa: ANN401
        """Return ``value`` with every known parameter in it perturbed."""
        if (parameter := self.parameter(value)) is not None:
            return self._current.whole(parameter)
        if isinstance(value, dict):
            return {name: self._replace(item) for name, item in value.items()}
        if isinstance(value, (tuple, list)):
            items = [self._replace(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return value

    @property
    def _current(self) -> PerturbedPoint:
        if self.point is None:
            raise RuntimeError("no point is set")
        return self.point

    def _linear(self, input: Any, weight: Any, bias: Any = None) -> Any:  # noqa: ANN401
        parameter = self.parameter(weight)
        if parameter is None or not self._plain(input):
            return NotImplemented
        if not self._current.fits(input, parameter, inner=1):
            return NotImplemented
        return self._current.linear(input, parameter, self._replace(bias))

    def _matmul(self, input: Any, mat2: Any, bias: Any = None, **more: Any) -> Any:  # noqa: ANN401
        parameter = self.parameter(mat2)
        if parameter is None or more or not self._plain(input):
            return NotImplemented
        if not self._current.fits(input, parameter, inner=0):
            return NotImplemented
        return self._current.matmul(input, parameter, self._replace(bias))

    def _addmm(self, input: Any, mat1: Any, mat2: Any, **more: Any) -> Any:  # noqa: ANN401
        return self._matmul(mat1, mat2, input, **more)

    def _embedding(self, input: Any, weight: Any, *more: Any, **named: Any) -> Any:  # noqa: ANN401
        parameter = self.parameter(weight)
        limited = len(more) > 1 or named.get("max_norm") is not None  # renormalises the rows
        if parameter is None or len(parameter.shape) != 2 or limited:
            return NotImplemented
        return self._current.rows(input, parameter)

    def _plain(self, value: Any) -> bool:  # noqa: ANN401
        return isinstance(value, Tensor) and self.parameter(value) is None
