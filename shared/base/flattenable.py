"""What a module must not have if its parameters are to be moved into one vector.

A tensor that shares memory with a parameter would be cut off from it, an embedding with a
``max_norm`` writes its rows whenever it is read, and a compiled or scripted module does not let its
torch functions be seen. Each would give wrong numbers without a word, or an error of torch's own.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from shared.base.errors import ConfigError

Named = tuple[str, Tensor]


def check_flattenable(module: nn.Module, chosen: Mapping[str, nn.Parameter]) -> None:
    """Refuse a module whose trainable parameters cannot be moved or perturbed.

    Tensors in attributes of the modules, and in lists, tuples and dictionaries there, are looked
    at; a view that is kept anywhere else cannot be seen.

    Args:
        module: the whole model.
        chosen: the parameters to be trained, by name.

    Raises:
        ConfigError: names the part, and says what to do.
    """
    for name, part in module.named_modules():
        if reason := _reason_against(part):
            raise ConfigError(f"module {name or type(module).__name__!r}: {reason}")
    trained = {id(parameter): name for name, parameter in chosen.items()}
    for (name, one), (other_name, other) in _neighbours(_tensors(module)):
        if (id(one) in trained or id(other) in trained) and _overlap(one, other):
            raise ConfigError(
                f"parameter {trained.get(id(one), name)!r} shares memory with "
                f"{trained.get(id(other), other_name)!r}: moving it would part the two; use one "
                "parameter object for both, or make the view when it is needed"
            )


def _reason_against(part: nn.Module) -> str:
    if isinstance(part, torch.jit.ScriptModule):
        return "a module of torch functions expected, but it is scripted: load the Python module"
    compiled = getattr(part, "_compiled_call_impl", None) is not None
    if compiled or type(part).__name__ == "OptimizedModule":
        return "a module of torch functions expected, but it is compiled: leave torch.compile out"
    if getattr(part, "max_norm", None) is not None:
        return (
            f"max_norm = {part.max_norm} writes the parameters whenever they are read: "
            "set it to None, or limit the rows once before training"
        )
    return ""


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that the modules keep, by name; a parameter comes once for each of its names."""
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        for name, value in vars(part).items():
            inner = name in ("_parameters", "_buffers")
            for key, tensor in _within(value):
                yield prefix + (key if inner else f"{name}{f'[{key}]' if key else ''}"), tensor


def _within(value: object, key: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors that a value is or, as a list, tuple or dictionary, has."""
    if isinstance(value, Tensor):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            if isinstance(item, Tensor):
                yield str(name), item
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            if isinstance(item, Tensor):
                yield str(number), item


def _neighbours(tensors: Iterable[Named]) -> Iterator[tuple[Named, Named]]:
    """Pairs of different tensors whose extents in one storage overlap."""
    unique = {id(tensor): (name, tensor) for name, tensor in reversed(list(tensors))}
    placed = [(_extent(tensor), (name, tensor)) for name, tensor in unique.values()]
    placed = sorted((each for each in placed if each[0][0]), key=lambda each: each[0])
    active: list[tuple[tuple[int, int, int], Named]] = []
    for (at, first, last), named in placed:
        active = [each for each in active if each[0][0] == at and each[0][2] > first]
        yield from ((other, named) for _, other in active)
        active.append(((at, first, last), named))


def _extent(tensor: Tensor) -> tuple[int, int, int]:
    """Address of the storage, and the first byte and the one after the last; no storage: 0."""
    if tensor.layout != torch.strided or not tensor.numel() or tensor.is_meta:
        return 0, 0, 0
    reach = sum(int((n - 1) * step) for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    first, size = int(tensor.storage_offset()), tensor.element_size()
    return tensor.untyped_storage().data_ptr(), first * size, (first + reach + 1) * size


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors whose extents overlap have an element in common, not only between."""
    if one.dtype != other.dtype:
        return True
    start = min(int(one.storage_offset()), int(other.storage_offset()))
    stop = max(_extent(each)[2] // each.element_size() for each in (one, other))
    addresses = torch.arange(stop - start)
    mine, theirs = (
        addresses.as_strided(each.shape, each.stride(), each.storage_offset() - start).flatten()
        for each in (one, other)
    )
    return bool(torch.isin(mine, theirs).any())
