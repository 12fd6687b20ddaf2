"""A model's folder on the Hugging Face hub, or on a server that speaks its protocol."""

from pathlib import Path
from typing import Any

from shared.base.errors import ConfigError, DataError

# What a folder of a model has. Ledger, logs and data have other names and can never go along.
OF_A_MODEL = ("README.md", "*.safetensors", "*.safetensors.index.json", "*.gguf", "*.jinja",
              "config.json", "generation_config.json", "adapter_config.json", "tokenizer.json",
              "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
              "vocab.json", "merges.txt", "tokenizer.model", "vocab.txt")  # fmt: skip


def files_of(folder: Path) -> list[Path]:
    """The files of a model's folder that are uploaded, by name."""
    return sorted({path for pattern in OF_A_MODEL for path in folder.glob(pattern)})


def push(folder: Path, name: str, private: bool, message: str) -> str:
    """Upload a model's folder; return the address of the commit.

    The token comes from where ``huggingface_hub`` looks for it: HF_TOKEN, or ``hf auth login``.

    Args:
        folder: of the model.
        name: of the repository, ``owner/name``; it is created if there is none.
        private: whether a new repository is private.
        message: of the commit.

    Raises:
        ConfigError: the name is not one of a repository.
        DataError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_name(name)
    api: Any = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name, folder_path=str(folder), commit_message=message,
            allow_patterns=list(OF_A_MODEL),
        )  # fmt: skip
    except (HfHubHTTPError, OSError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(
            f"{name} cannot be uploaded: {lines[0].rstrip('.')}. A token with the right to write "
            "is needed: run 'hf auth login', or set HF_TOKEN; HF_ENDPOINT names another server"
        ) from error
    return str(commit.commit_url)


def check_name(name: str) -> None:
    """Refuse what no repository can be called.

    Raises:
        ConfigError: says what is expected.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub: owner/name expected, got {name!r}: {error}") from error
