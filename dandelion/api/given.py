"""Settings as keyword arguments: what Python users write for what the command line takes."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shared.base.errors import ConfigError
from shared.config.schema import Config

NAME = "run_name"


def config_of(
    start: Config | str | Path | None, settings: Mapping[str, object], resume: Path | None = None
) -> Config:
    """The valid configuration of a run, from a configuration or a TOML file and from settings.

    Raises:
        ConfigError: an unknown setting (the nearest ones are named), a value of the wrong type or
            out of range, settings that cannot work together, or a file that cannot be read.
    """
    from dandelion.settings.gather import gather_settings

    given = plain_settings(settings)
    if isinstance(start, Config):
        return gather_settings(None, start.replace(**given).to_run_config(), resume)
    return gather_settings(None if start is None else Path(start), given, resume)


def plain_settings(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings with ``name`` as ``run_name``, paths as texts and NumPy's scalars as Python's.

    Raises:
        ConfigError: ``name`` and ``run_name`` are both given, or ``resume`` is.
    """
    if "resume" in settings:
        raise ConfigError("resume: dandelion.resume(folder) continues a run")
    if "name" in settings and NAME in settings:
        raise ConfigError("name and run_name are the same setting; give it once")
    return {NAME if key == "name" else key: _plain_value(value) for key, value in settings.items()}


def _plain_value(value: object) -> object:
    if isinstance(value, Mapping):  # the table of a section: zo={"eps": 0.01}
        return {key: _plain_value(each) for key, each in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    item = getattr(value, "item", None)  # of a NumPy scalar, such as numpy.geomspace gives
    return item() if callable(item) and getattr(value, "ndim", None) == 0 else value


@contextmanager
def plain_torch() -> Iterator[None]:
    """Have PyTorch work as in a new process, and give its number of threads back at the end.

    What a caller has switched on around us would change what is computed, or stop it: no gradients,
    inference mode, autocast to 16 bits, a default device.
    """
    import torch

    threads = torch.get_num_threads()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        try:
            yield
        finally:
            torch.set_num_threads(threads)
