"""A torch function mode that hands every torch function θ + scale * z in place of θ."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from shared.estimation.blockwise import FlatParameter, PerturbedPoint

Function = Callable[..., Any]

# Properties made of a tensor's numbers; all others are about it.
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
    """Whether a torch function reads a tensor's numbers, and does not only ask about it."""
    return func not in ABOUT and (func.__name__ != "__get__" or func in VIEWS)


class Interception(TorchFunctionMode):
    """While active, torch functions get the values at ``point`` of the parameters that it knows.

    What is no torch function is not seen, such as a scripted module. What a function writes into a
    parameter goes into a perturbed copy and is dropped with it: the parameter is never touched.
    The address of such a copy is refused: who asks for it would read what is gone.
    """

    def __init__(self, known: Mapping[int, FlatParameter]) -> None:
        super().__init__()
        self.point: PerturbedPoint | None = None
        self._known = known  # by the parameter's id
        self._special: dict[Function, Function] = {
            F.linear: self._linear,
            F.embedding: self._embedding,
            torch.addmm: self._addmm,
            torch.matmul: self._matmul,
            torch.mm: self._matmul,
            Tensor.matmul: self._matmul,
            Tensor.__matmul__: self._matmul,
        }

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Call ``func`` with every known parameter among its arguments perturbed."""
        named = kwargs or {}  # F.layer_norm hands its parameters over here, nn.LSTM in a list
        if not self._meets(args) and not (named and self._meets(named.values())):
            return func(*args, **named)
        if not reads_numbers(func):
            return func(*args, **named)
        if func is Tensor.data_ptr:
            raise RuntimeError("a perturbed parameter has no address: use it in torch functions")
        if func in self._special:
            result = self._special[func](*args, **named)
            if result is not NotImplemented:
                return result
        return func(*self._swapped(args), **self._swapped(named))

    def _meets(self, values: Iterable[Any]) -> bool:
        """Tell whether a known parameter is among ``values`` or in a container there."""
        for value in values:
            if id(value) in self._known:
                return True
            if isinstance(value, (tuple, list)) and self._meets(value):
                return True
            if isinstance(value, dict) and self._meets(value.values()):
                return True
        return False

    def _swapped(self, value: Any) -> Any:  # noqa: ANN401
        """Return ``value`` with every known parameter in it perturbed."""
        if (held := self._known.get(id(value))) is not None:
            return self._here.whole(held)
        if isinstance(value, dict):
            return {name: self._swapped(item) for name, item in value.items()}
        if isinstance(value, (tuple, list)):
            items = [self._swapped(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return value

    @property
    def _here(self) -> PerturbedPoint:
        if self.point is None:
            raise RuntimeError("no point is set")
        return self.point

    def _linear(self, input: Any, weight: Any, bias: Any = None) -> Any:  # noqa: ANN401
        held = self._known.get(id(weight))
        if held is None or not self._plain(input) or not self._here.fits(input, held, inner=1):
            return NotImplemented
        return self._here.linear(input, held, self._swapped(bias))

    def _matmul(self, input: Any, mat2: Any, bias: Any = None, **more: Any) -> Any:  # noqa: ANN401
        held = self._known.get(id(mat2))
        if held is None or more or not self._plain(input):
            return NotImplemented
        if not self._here.fits(input, held, inner=0):
            return NotImplemented
        return self._here.matmul(input, held, self._swapped(bias))

    def _addmm(self, input: Any, mat1: Any, mat2: Any, **more: Any) -> Any:  # noqa: ANN401
        return self._matmul(mat1, mat2, input, **more)

    def _embedding(self, input: Any, weight: Any, *more: Any, **named: Any) -> Any:  # noqa: ANN401
        held = self._known.get(id(weight))
        limited = len(more) > 1 or named.get("max_norm") is not None  # renormalises the rows
        if held is None or len(held.shape) != 2 or limited:
            return NotImplemented
        return self._here.rows(input, held)

    def _plain(self, value: Any) -> bool:  # noqa: ANN401
        return isinstance(value, Tensor) and id(value) not in self._known
