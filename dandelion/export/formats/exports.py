"""Exports the model of a round: whole or as adapters, into a folder or a GGUF file."""

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from dandelion.export.formats.gguf_file import write_gguf
from server.pages.model_card import CARD, base_model_of, license_of
from shared.base.errors import ConfigError
from shared.base.files import translate_tensor_errors, write_atomically
from shared.base.text import portable
from shared.config.schema import Config
from shared.models.model import LanguageModel

ADAPTERS = "adapter_model.safetensors"
LORA = "lora"
GGUF = ".gguf"


class RoundModel(Protocol):
    """A model as it was after a round, with its card."""

    @property
    def round(self) -> int:
        """0 is the model that the run started from."""

    @property
    def card(self) -> str:
        """The text of its model card, in Markdown."""

    @property
    def language_model(self) -> LanguageModel:
        """Module and tokenizer together."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trained parameters by name."""

    def save(self, folder: str | Path) -> Path:
        """Write it whole, with its card."""


def export_path(model: RoundModel, config: Config, path: Path, merge: bool, dtype: str) -> Path:
    """Write a GGUF file if the path ends in ``.gguf``, else a folder; return the path.

    Args:
        model: of the round.
        config: of the run.
        path: of the file, or of a folder that is new or empty.
        merge: of scope lora into a folder: the whole model instead of the adapters.
        dtype: of the numbers of a GGUF file.

    Raises:
        ConfigError: as ``export_folder`` and ``export_gguf``; or a dtype for a folder.
    """
    if path.suffix == GGUF:
        return export_gguf(model, config, path, dtype)
    if dtype != "f32":
        raise ConfigError(
            f"dtype {dtype!r} with {path}: a file that ends in {GGUF} expected; a folder has the "
            "dtype of the run"
        )
    return export_folder(model, config, path, merge)


def export_folder(model: RoundModel, config: Config, folder: Path, merge: bool) -> Path:
    """Write a model's folder in safetensors, with its card; of scope lora, the adapters alone.

    Args:
        model: of the round.
        config: of the run.
        folder: must be new or empty.
        merge: adapters are added into the layers that they adapt, and the whole model is written.

    Raises:
        ConfigError: the folder has files, or there is nothing to merge.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: a new or empty folder expected to write a model to")
    has_adapters = config.model.scope == LORA
    if merge and not has_adapters:
        raise ConfigError(
            f"merge: scope {LORA} expected, got {config.model.scope!r}, which has no adapters; "
            "leave it out: the model is written whole"
        )
    if merge or not has_adapters:
        return model.save(folder)
    save_adapters(model, config, folder)
    write_atomically(folder / CARD, model.card.encode())
    return folder


def save_adapters(model: RoundModel, config: Config, folder: Path) -> None:
    """Write adapters as PEFT does: ``PeftModel.from_pretrained(base, folder)`` reads them.

    A classifier's head is trained with its adapters, and goes with them.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    module: Any = model.language_model.module
    head = {name: value for name, value in model.parameters.items() if ".lora_" not in name}
    settings = module.peft_config["default"]
    state = head | get_peft_model_state_dict(module, save_embedding_layers=False)
    settings.base_model_name_or_path = base_model_of(config) or portable(config.model.name)
    settings.modules_to_save = sorted({name.rpartition(".")[0] for name in head}) or None
    settings.task_type = None if model.language_model.has_head else "CAUSAL_LM"
    settings.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    settings.save_pretrained(folder)
    tensors = {f"base_model.model.{k}": v.detach().cpu().contiguous() for k, v in state.items()}
    with translate_tensor_errors(folder):
        save_file(tensors, folder / ADAPTERS, {"format": "pt"})


def export_gguf(model: RoundModel, config: Config, path: Path, dtype: str) -> Path:
    """Write the model of a round as a GGUF file; adapters are merged.

    Raises:
        ConfigError: the model is a problem of one's own, or of an architecture that is not known.
    """
    if config.model.app:
        raise ConfigError(f"a GGUF file with app {config.model.app!r}: it is no language model")
    name = f"{Path(config.model.name).name} round {model.round}"
    return write_gguf(model.language_model, path, dtype, name, license_of(config) or "")
