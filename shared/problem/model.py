"""The model of a problem: any module, with initial weights that are the same at every site."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from shared.base.errors import ConfigError, DataError
from shared.base.files import translate_tensor_errors
from shared.models.initial_weights import fill_normal_
from shared.models.model import UNLIMITED, LanguageModel, Tokenizer
from shared.problem.problem import OWN, SEEDED, Problem
from shared.randomness.streams import model_weights_key

WEIGHTS_FILE = "model.safetensors"


class NoTokenizer:
    """Stands where a language model has its tokenizer, and refuses whatever needs one."""

    def __init__(self, app: str) -> None:
        self.identity = f"app {app}"

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  (a refusal, whatever is wanted)
        if name.startswith("__"):
            raise AttributeError(name)
        raise ConfigError(f"{self.identity}: a tokenizer ({name}) is needed here, and it has none")


@dataclass(frozen=True)
class ProblemModel(LanguageModel):
    """A module of one's own; it reads no tokens and is saved as its tensors."""

    @property
    def positions(self) -> int:
        """No limit: the module reads what the problem's loss gives it."""
        return UNLIMITED

    @property
    def has_head(self) -> bool:
        """False: what the module returns is known to the problem alone."""
        return False

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors``, which ``load_state_dict`` of the module reads."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in self.module.state_dict().items()
        }
        with translate_tensor_errors(folder):
            save_file(tensors, folder / WEIGHTS_FILE, {"app": self.name})


def problem_model(app: str, problem: Problem, seed: int, start: Path | None = None) -> ProblemModel:
    """Build a problem's untrained model, in evaluation mode.

    Args:
        app: the name of the problem.
        problem: of which it is.
        seed: of its initial weights.
        start: a folder with the tensors of a trained one, or None.

    Raises:
        ConfigError: its function returns no module, or not a new one at each call, or its weights
            depend on chance in a way that cannot be repeated.
        DataError: a file of weights is missing or does not fit.
    """
    module, twin = (_build(app, problem, each) for each in (seed, seed + (problem.weights != OWN)))
    shared = {id(each) for each in module.parameters()} & {id(each) for each in twin.parameters()}
    if module is twin or shared:
        raise ConfigError(f"app {app!r}: model: a new module at each call expected, got one twice")
    differing = _differing(module, twin)
    if problem.weights == SEEDED:
        _draw_(app, module, differing, seed)
    elif problem.weights != OWN:
        load_weights_(module, Path(problem.weights))
    elif differing:
        raise ConfigError(
            f"app {app!r}: weights 'own': the same numbers at every call expected, but "
            f"{differing[0]} differs: seed them, or use weights 'seeded'"
        )
    if start is not None:
        load_weights_(module, start / WEIGHTS_FILE)
    return ProblemModel(app, module.eval(), cast(Tokenizer, NoTokenizer(app)))


def load_weights_(module: nn.Module, file: Path) -> None:
    """Read a module's parameters and buffers from a safetensors file.

    Raises:
        DataError: the file is missing, is none, or has other tensors than the module.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(file))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file}: the tensors of {type(module).__name__} expected; {reason}") from (
            error
        )


def _build(app: str, problem: Problem, seed: int) -> nn.Module:
    with _seed_generators(seed):
        module: object = problem.model()
    if not isinstance(module, nn.Module) or not any(True for _ in module.parameters()):
        raise ConfigError(
            f"app {app!r}: model: a function that returns an nn.Module with parameters expected, "
            f"got {type(module).__name__}"
        )
    return module


@contextmanager
def _seed_generators(seed: int) -> Iterator[None]:
    """Seed the generators of torch, numpy and Python for a while."""
    states = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % (1 << 63))
            np.random.seed(seed % (1 << 32))
            random.seed(seed)
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


def _differing(module: nn.Module, twin: nn.Module) -> list[str]:
    """Names of the tensors that depend on chance: those that differ between two modules."""
    others = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
    mine = [*module.named_parameters(), *module.named_buffers()]
    return [
        name
        for name, tensor in mine
        if name not in others or not _is_same(tensor.detach(), others[name].detach())
    ]


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def _draw_(app: str, module: nn.Module, names: list[str], seed: int) -> None:
    """Draw the tensors of these names anew, with the deviations of torch's own layers.

    Raises:
        ConfigError: one of them is a buffer, or is no floating tensor.
    """
    parameters = dict(module.named_parameters())
    for name in names:
        if name not in parameters or not parameters[name].is_floating_point():
            raise ConfigError(
                f"app {app!r}: {name} depends on chance and is no floating parameter: make it of "
                "a generator with a fixed seed, so that all sites have the same"
            )
        place = [*parameters].index(name)
        weights = np.empty(parameters[name].numel(), np.float32)
        fill_normal_(weights, model_weights_key(seed, place), _deviation(module, name, parameters))
        drawn = torch.from_numpy(weights).view(parameters[name].shape)
        parameters[name].data.copy_(drawn)


def _deviation(module: nn.Module, name: str, parameters: dict[str, nn.Parameter]) -> float:
    """1 / sqrt(3 fan-in), as of torch's uniform initialisation; 1 for an embedding.

    He et al. 2015, https://arxiv.org/abs/1502.01852, with the gain that torch's layers use. A
    bias has the deviation of the weight beside it.
    """
    path, _, last = name.rpartition(".")
    if isinstance(module.get_submodule(path), nn.Embedding | nn.EmbeddingBag):
        return 1.0
    tensor = parameters[name]
    beside = parameters.get(".".join(filter(None, (path, last.replace("bias", "weight")))))
    if tensor.dim() < 2 and beside is not None and beside.dim() > 1:
        tensor = beside
    fan_in = tensor[0].numel() if tensor.dim() > 1 else tensor.numel()
    return 1 / sqrt(3 * max(fan_in, 1))


def without_frozen(module: nn.Module, trainable: Callable[[str], bool]) -> Callable[[str], bool]:
    """The same choice of parameters without those that the user's code has frozen."""
    frozen = {name for name, each in module.named_parameters() if not each.requires_grad}
    return lambda name: name not in frozen and trainable(name)
