"""LoRA adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685), put into a model by PEFT.

Their initial weights follow from the run's seed, since torch's own differ between machines. A is
close to normal, with the deviation of PEFT's Kaiming-uniform. B is zero, so that the adapted model
starts as the model itself.
"""

from dataclasses import replace
from math import sqrt
from typing import Any

from torch import Tensor, nn

from shared.base.errors import ConfigError
from shared.config.sections import ModelSettings
from shared.models.blocks import blocks_of
from shared.models.initial_weights import fill_normal_
from shared.models.model import LanguageModel
from shared.randomness.streams import adapter_weights_key


def adapt_(model: LanguageModel, settings: ModelSettings, seed: int) -> LanguageModel:
    """Put adapters of ``lora-rank`` into the model's layers, which stay frozen.

    Returns:
        The model, which merges its adapters when it is saved: no reader needs PEFT.

    Raises:
        ConfigError: PEFT knows no target in this architecture, no module has one of the names
            in ``lora-targets``, there are not ``lora-blocks`` blocks, or the module is no model of
            transformers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    model = model.in_transformers()  # PEFT knows its layers
    module: nn.Module = model.module
    targets = [name.strip() for name in settings.lora_targets.split(",") if name.strip()]
    lora = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=targets or None,
        fan_in_fan_out=_is_transposed(module),
        **_last_layers(module, settings.lora_blocks),
    )
    try:
        inject_adapter_in_model(lora, module)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"scope lora: {str(error).splitlines()[0]}; set lora-targets") from error
    module.eval()
    _initialise_(module, seed)
    return replace(model, state=merge_adapters)


def _last_layers(module: nn.Module, count: int) -> dict[str, Any]:
    """PEFT's options for adapters in the last ``count`` blocks alone; 0: none."""
    if not count:
        return {}
    stem, blocks = blocks_of(module)
    if count > len(blocks):
        raise ConfigError(
            f"lora-blocks: at most {len(blocks)} expected, as many as {type(module).__name__} has, "
            f"got {count}"
        )
    numbers = list(range(len(blocks) - count, len(blocks)))
    return {"layers_to_transform": numbers, "layers_pattern": stem.rpartition(".")[2]}


def _initialise_(module: nn.Module, seed: int) -> None:
    """Draw A of every adapter; PEFT sets B to zero."""
    for number, (name, parameter) in enumerate(module.named_parameters()):
        if ".lora_A." in name:
            deviation = 1 / sqrt(3 * parameter.shape[1])
            weights = parameter.detach().view(-1).numpy()
            fill_normal_(weights, adapter_weights_key(seed, number), deviation)


def merge_adapters(module: nn.Module) -> dict[str, Tensor]:
    """Add adapters into the layers that they adapt; the state, under the layers' own names.

    The module itself does not change.
    """
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {
        name: part for name, part in module.named_modules() if isinstance(part, LoraLayer)
    }
    added = {
        f"{name}.base_layer.weight": layer.get_delta_weight("default")
        for name, layer in layers.items()
    }
    return {
        name.replace(".base_layer.", "."): value + added[name] if name in added else value
        for name, value in module.state_dict().items()
        if ".lora_" not in name
    }


def _is_transposed(module: nn.Module) -> bool:
    """Whether layers store their weights transposed, as GPT-2's do."""
    kinds: set[Any] = {type(part).__name__ for part in module.modules()}
    return "Conv1D" in kinds
