"""The description of one's own problem: a model, the examples of a site, and a loss of each.

    from dandelion import Problem

    def loss(module, batch):                  # (n,): a number for each example, lower is better
        inputs, targets = batch
        return F.cross_entropy(module(inputs), targets, reduction="none")

    problem = Problem(model=Net, examples=load, evaluation=load_test, loss=loss)

``dandelion run --app my_package.vision:problem`` trains it. The module must be importable at the
server and at every site. Its source files must be the same everywhere (``shared.problem.source``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shared.base.errors import ConfigError

SEEDED, OWN = "seeded", "own"
# What ``examples`` returns: a Dataset of torch.utils.data, or tensors (n, ...) of one length, alone
# or in a tuple, a list or a dictionary.
Data = Any
# What ``loss`` and metrics get: the examples of a batch, stacked. For tensors the same tuple or
# dictionary of (B, ...); for a Dataset what torch's ``default_collate`` makes of its items.
Batch = Any
Measure = Callable[[nn.Module, Batch], Tensor]  # -> (B,)


@dataclass(frozen=True)
class Site:
    """The site whose examples are to be loaded.

    Attributes:
        number: of the site, from 0; the ``partition-id`` of its node.
        count: of all sites; the node's ``num-partitions``.
        data: the folder or name that the site's operator gives by ``--set data=...``; else empty.
    """

    number: int
    count: int
    data: str = ""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is trained: any module, any tensors, any loss.

    Attributes:
        model: a function without arguments that returns a new ``nn.Module`` at each call. It is put
            into evaluation mode: dropout is off, and buffers (such as the running statistics of a
            batch norm) stay as they are. A parameter with ``requires_grad = False`` is not trained.
        examples: a function of no argument that returns all examples, which ``partitioner`` shares
            out to the sites; or a function of a ``Site`` that returns the examples of that site.
        loss: from the module and a batch to the losses (B,) of its examples. With mode zo it needs
            no gradient. An example's loss may depend on that example alone.
        evaluation: a function that returns the examples which the server evaluates on. Without it
            ``eval-fraction`` of what ``examples`` returns is held out.
        metrics: by name, functions as ``loss``; the server records their means over ``evaluation``.
        groups: from what ``examples`` returns to a natural id of each of its examples, which
            ``partitioner`` shares out. Without it every example is a group of its own.
        collate: from a list of the items of a Dataset to a batch; torch's ``default_collate``
            unless given.
        weights: ``seeded``: what the model draws by chance is drawn anew by our generator, which
            gives the same bits on every machine, with the deviation of torch's own layers; all
            else (pretrained weights, ones, zeros) stays. ``own``: as ``model`` makes them, with
            torch's generator seeded by the run. Or the path of a safetensors file. Sites whose
            weights differ from the server's are refused.

    Raises:
        ConfigError: an argument is of another kind; names it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> x, y = torch.randn(50, 3), torch.randn(50)
        >>> def loss(module, batch):
        ...     return (module(batch[0])[:, 0] - batch[1]) ** 2
        >>> Problem(model=lambda: nn.Linear(3, 1), examples=lambda: (x, y), loss=loss).takes_site
        False
    """

    model: Callable[[], nn.Module]
    examples: Callable[..., Data]
    loss: Measure
    evaluation: Callable[[], Data] | None = None
    metrics: Mapping[str, Measure] = field(default_factory=dict)
    groups: Callable[[Data], Sequence[Any]] | None = None
    collate: Callable[[list[Any]], Batch] | None = None
    weights: str | Path = SEEDED

    def __post_init__(self) -> None:
        for name in ("model", "examples", "loss", "evaluation", "groups", "collate"):
            value = getattr(self, name)
            if not callable(value) and (value is not None or name in ("model", "examples", "loss")):
                raise ConfigError(f"Problem: {name}: a function expected, got {_describe(value)}")
        for name, measure in self.metrics.items():
            if not (str(name).isidentifier() and name != "loss" and callable(measure)):
                raise ConfigError(
                    f"Problem: metrics: names of letters, digits and _ other than 'loss', each "
                    f"with a function, expected; got {name!r}: {_describe(measure)}"
                )
        if not isinstance(self.weights, str | Path):
            raise ConfigError(
                f"Problem: weights: 'seeded', 'own' or the path of a safetensors file expected, "
                f"got {_describe(self.weights)}"
            )
        if self.takes_site and self.groups is not None:
            raise ConfigError(
                "Problem: groups: only examples that are shared out have them, but examples takes "
                "a site; leave one of the two out"
            )

    @property
    def takes_site(self) -> bool:
        """Whether ``examples`` is a function of a site.

        Raises:
            ConfigError: it takes more than one argument.
        """
        needed = [
            each
            for each in signature(self.examples).parameters.values()
            if each.default is Parameter.empty
            and each.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        ]
        if len(needed) > 1:
            names = ", ".join(each.name for each in needed)
            raise ConfigError(
                f"Problem: examples: a function of nothing or of one Site expected, got ({names})"
            )
        return bool(needed)


def _describe(value: object) -> str:
    return f"{type(value).__name__} {value!r}"[:80]
