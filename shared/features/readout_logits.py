"""The logits of a model with a readout; features are computed once per example if it is frozen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from shared.base.errors import ConfigError
from shared.config.schema import Config
from shared.features.kept_features import KeptFeatures
from shared.features.pooling import (
    LAST,
    MEAN,
    FeaturePart,
    count_features,
    parse_features,
    pool,
    run_with_states,
)
from shared.features.readout import LinearBatch, Readout, ReadoutSettings
from shared.features.store import KeptTensors, features_name
from shared.generation.more_prompts import MorePrompts
from shared.models.model import READOUT, LanguageModel

MIB = 1 << 20
Scores = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (module, tokens, lengths) -> (B, k)


@dataclass(frozen=True)
class ReadoutLogits:
    """Class logits of a module with a readout.

    If all of the module but its readout is frozen, what comes before the readout is kept per
    example. Otherwise it is computed at every call.
    """

    parts: tuple[FeaturePart, ...]
    columns: tuple[int, ...]  # of the model's scores that are the classes; none: the classes' are 0
    pad: int
    tokenizer: str  # its identity
    config: Config
    scores: Scores | None = None  # what gives the model's own logits instead of columns
    prompts: MorePrompts | None = None  # in which texts are read besides

    def __call__(self, module: nn.Module, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, k) of texts (B, T) of some lengths (B,)."""
        logits: Tensor = _readout(module)(*self.inputs(module, tokens, lengths))
        return logits

    def inputs(self, module: nn.Module, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised features (B, f), and the logits (B, k) that the model gives itself."""
        if self._is_frozen(module):
            rows = self.kept.rows(module, tokens, lengths)
        else:
            rows = self._standardise(module, self.compute(module, tokens, lengths))
        count = rows.shape[1] - _readout(module).classes
        return rows[:, :count], rows[:, count:]

    def compute(self, module: nn.Module, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Features and the model's own logits side by side (B, f + k), float32."""
        states, scores = run_with_states(module, tokens, lengths, self.pad)
        features = torch.cat(self._pool(module, tokens, lengths, states), 1)
        if self.scores is not None:
            base = self.scores(module, tokens, lengths)
        elif self.columns:
            base = scores[:, list(self.columns)].float()
        else:
            base = features.new_zeros(len(tokens), _readout(module).classes)
        return torch.cat([features, base], 1)

    def _pool(
        self, module: nn.Module, tokens: Tensor, lengths: Tensor, states: Sequence[Tensor]
    ) -> list[Tensor]:
        """Each part's features (B, h); ``states`` are those after the first prompt."""
        after = {1: (states, lengths)}
        for number in sorted({part.prompt for part in self.parts} - {1}):
            assert self.prompts is not None
            read, longer = self.prompts.read(number, tokens, lengths)
            after[number] = run_with_states(module, read, longer, self.pad)[0], longer
        return [pool((part,), *after[part.prompt]) for part in self.parts]

    @cached_property
    def kept(self) -> KeptFeatures:
        """The rows of the run's examples."""
        run = self.config.run
        return KeptFeatures(
            self.compute, self._open_store, run.keep_memory * MIB, finish=self._standardise
        )

    def linear_batch(
        self, module: nn.Module, tokens: Tensor, lengths: Tensor, classes: Tensor
    ) -> LinearBatch:
        """Features, logits and error of texts (B, T) of some classes (B,), without a graph."""
        with torch.inference_mode():
            features, base = self.inputs(module, tokens, lengths)
            return LinearBatch.of_classes(
                features, _readout(module)(features, base).float(), classes
            )

    def keep(self, module: nn.Module, tokens: Tensor, lengths: Tensor) -> None:
        """Compute what is kept of texts (n, T) before it is needed, if anything is."""
        if self._is_frozen(module):
            self.kept.prepare(module, tokens, lengths)

    def raw_features(self, module: nn.Module, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Features (B, f) before they are standardised."""
        return self.kept.look_up(module, tokens, lengths)[:, : -_readout(module).classes]

    def _standardise(self, module: nn.Module, rows: Tensor) -> Tensor:
        readout = _readout(module)
        features, base = rows[:, : -readout.classes], rows[:, -readout.classes :]
        return torch.cat([readout.standardise(features), base], 1)

    def _open_store(self, module: nn.Module) -> KeptTensors:
        run = self.config.run
        frozen = [name for name, _ in module.named_parameters() if self._matters(module, name)]
        what = f"features {self.parts} and logits {self.scores or self.columns}"
        if self.prompts is not None and len(self.prompts) > 1:
            prompts = [[piece.tolist() for piece in each] for each in self.prompts.others]
            what += f", in prompts {[part.prompt for part in self.parts]} of {prompts}"
        name = features_name(module, frozen, self.tokenizer, what, without=READOUT)
        dtype = getattr(torch, run.keep_dtype)
        return KeptTensors(name, run.keep_memory * MIB, run.keep_disk * MIB, dtype)

    def _matters(self, module: nn.Module, name: str) -> bool:
        """Whether what is kept depends on a parameter; an encoder's own head and pooler do not."""
        if self.columns or self.scores is not None:
            return not name.startswith(f"{READOUT}.")
        any_module: Any = module
        body = f"{any_module.base_model_prefix}."
        return name.startswith(body) and not name.startswith(f"{body}pooler.")

    def _is_frozen(self, module: nn.Module) -> bool:
        return not any(
            parameter.requires_grad
            for name, parameter in module.named_parameters()
            if not name.startswith(f"{READOUT}.")
        )


def _readout(module: nn.Module) -> Readout:
    any_module: Any = module
    readout: Readout = any_module.readout
    return readout


def readout_logits(
    model: LanguageModel,
    config: Config,
    columns: Sequence[int],
    scores: Scores | None = None,
    prompts: MorePrompts | None = None,
) -> ReadoutLogits | None:
    """The logits of a model by its readout; None if it has none.

    Args:
        model: of transformers.
        config: of the run.
        columns: of a causal model's scores, one for each class; none for an encoder.
        scores: computes a causal model's own logits of the classes if no columns are these.
        prompts: in which a causal model reads the texts.

    Raises:
        ConfigError: features of a prompt that there is not, or a prompt whose features none are.
    """
    if not hasattr(model.module, READOUT):
        return None
    parts, name = parse_features(_readout(model.module).features, LAST), model.tokenizer.identity
    _check_prompts(parts, 1 if prompts is None else len(prompts))
    pad = model.tokenizer.pad
    return ReadoutLogits(parts, tuple(columns), pad, name, config, scores, prompts)


def _check_prompts(parts: Sequence[FeaturePart], count: int) -> None:
    """Check that features are of the prompts that there are, and each further one has some."""
    numbers = {part.prompt for part in parts}
    if not numbers <= {*range(1, count + 1)}:
        raise ConfigError(
            f"features @1 to @{count} expected, as many prompts as prompt and more-prompts have, "
            f"got @{max(numbers)}"
        )
    if unread := {*range(2, count + 1)} - numbers:
        raise ConfigError(
            f"more-prompts: features of each expected, such as last@{min(unread)}, got features "
            f"{'+'.join(map(str, parts))!r}"
        )


def readout_settings(config: Config, model: LanguageModel, classes: int) -> ReadoutSettings | None:
    """What the run's settings say of a readout; None if it trains none.

    ``classes`` is the number of its outputs, 0 with a task that takes no readout.

    Raises:
        ConfigError: the scope does not fit the model, or features that it does not have.
    """
    settings = config.model
    if not settings.is_linear:
        return None
    if not classes:
        raise ConfigError(
            f"scope {settings.scope!r} needs task classification or regression, got "
            f"{config.data.task!r}"
        )
    if model.has_head != (settings.scope == "head"):
        kind = "an encoder with a head" if model.has_head else "a causal language model"
        advice = (
            "scope head with features = mean" if model.has_head else "scope words (or no features)"
        )
        raise ConfigError(f"scope {settings.scope!r}: {model.name!r} is {kind}; use {advice}")
    usual = MEAN if model.has_head else LAST
    parts = parse_features(settings.features, usual)
    text = "+".join(map(str, parts))
    count = count_features(parts, model.module)
    return ReadoutSettings(text, classes, count, settings.feature_scaling)
