"""GGUF files, dequantised to float32 once and cached in Hugging Face's format."""

import copy
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.base.errors import DataError
from shared.base.files import atomic_folder, cache_folder, file_hash

LOG = logging.getLogger("dandelion")
SUFFIX = ".gguf"


def find_gguf(name: str) -> Path | None:
    """Find the GGUF file of a path, or the only one in a folder without a ``config.json``.

    A file on a hub, ``owner/name/file.gguf``, is downloaded. None: the name means no GGUF file.

    Raises:
        DataError: the folder holds several, or the hub cannot be reached.
    """
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        files = sorted(path.glob(f"*{SUFFIX}"))
        if len(files) > 1:
            raise DataError(f"{name}: one GGUF file expected, got {[f.name for f in files]}")
        return files[0] if files else None
    if path.suffix != SUFFIX:
        return None
    if path.is_file():
        return path
    if name.count("/") < 2:
        raise DataError(f"{name}: no such file; a path or owner/name/file{SUFFIX} expected")
    from huggingface_hub import hf_hub_download

    owner, repo, file = name.split("/", 2)
    try:
        return Path(hf_hub_download(f"{owner}/{repo}", file))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{name} cannot be downloaded: {str(error).splitlines()[0].rstrip('.')}. Where the "
            f"hub can be reached, run 'hf download {owner}/{repo} {file} --local-dir FOLDER'; then "
            "copy the file here and set model to its path"
        ) from error


def convert(file: Path) -> Path:
    """Convert a GGUF file to a folder with the model in float32, or find that in the cache.

    Raises:
        DataError: the file cannot be read as a model.
    """
    folder = cache_folder() / "models" / f"{file.stem}-{file_hash(file)}"
    if not folder.is_dir():
        LOG.warning("dequantising %s (once)", file)
        with atomic_folder(folder) as draft:
            _convert(file, draft)
    return folder


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Let transformers log errors only: what it says of missing tensors, our errors say."""
    from transformers.utils.logging import get_verbosity, set_verbosity

    before = get_verbosity()
    set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        set_verbosity(before)


def check_complete(name: str, info: Mapping[str, Any], ignored: Collection[str] = ()) -> None:
    """Refuse files that lack a tensor: its weights would be random, other ones on each machine.

    Args:
        name: of the model.
        info: what transformers says of the loading.
        ignored: names of tensors that may be missing.

    Raises:
        DataError: names the missing tensors, or those of another shape.
    """
    missing = sorted(set(map(str, info["missing_keys"])) - set(ignored))
    missing += [str(key) for key in info.get("mismatched_keys", ())]
    if missing:
        raise DataError(
            f"model {name!r} lacks {len(missing)} tensors, such as {missing[0]!r}: its files are "
            "not those of a whole model of this architecture"
        )


def _config_of(file: Path, tokenizer: Any) -> Any:  # noqa: ANN401
    """The configuration that transformers makes of a file, with what it leaves at GPT-2's defaults.

    These are the number of positions, and the ids of tokens that a small vocabulary does not have.
    """
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    if config.model_type == "gpt2" and getattr(config, "n_ctx", None):
        config.n_positions = config.n_ctx
    for name in ("bos_token_id", "eos_token_id"):
        given = getattr(config, name, None)
        if isinstance(given, int) and given >= config.vocab_size:
            setattr(config, name, getattr(tokenizer, name))
    return config


def _convert(file: Path, into: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        with quiet_transformers():
            config = _config_of(file, tokenizer)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, config=config, output_loading_info=True
            )
    except Exception as error:  # whatever a library raises on a user's file
        raise DataError(
            f"{file} cannot be read as a model: {type(error).__name__}: {error}"
        ) from error
    read, info = loaded
    check_complete(str(file), info)
    # The model stays marked as quantised and cannot be saved: its weights go into a clean one.
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    clean: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    clean.load_state_dict(read.state_dict())
    clean.tie_weights()
    clean.float().save_pretrained(into)
    tokenizer.save_pretrained(into)
