"""Settings from the command line: a file, then single values, then what a resumed run recorded."""

import logging
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from dandelion.settings.presets import expand_preset
from shared.base.errors import ConfigError
from shared.base.options import Value
from shared.config.schema import RESUMABLE, Config, flat_key, flat_settings, with_former_defaults
from shared.training.components import option_of, parse
from shared.training.validate import check_data, configure

LOG = logging.getLogger("dandelion")
FOLDERS = ("output-dir", "resume", "app-dir")  # always paths
PATHS = ("model", "init-from", "dataset", "eval-dataset", "bp-dataset")  # or names of something


def gather(
    file: Path | None, pairs: list[str], resume: Path | None = None, **given: Value
) -> Config:
    """One valid configuration, for an engine that makes ``num-clients`` sites.

    Raises:
        ConfigError: as ``gather_deployed``, or more sites are waited for than there will be.
    """
    config = gather_deployed(file, pairs, resume, given)
    if not config.run.resume:
        check_sites(config)
    return config


def gather_deployed(
    file: Path | None, pairs: list[str], resume: Path | None, given: Mapping[str, Value]
) -> Config:
    """One valid configuration, whatever sites may come; later sources win.

    Raises:
        ConfigError: a pair is not ``key=value``, a value does not fit, a file cannot be read, or a
            resumed run is given a key that would make another run of it.
    """
    settings = flat_settings(read_toml(file)) if file else {}
    settings |= read_pairs(pairs)
    settings |= flat_settings({key: value for key, value in given.items() if value != ""})
    return _complete(settings, resume)


def gather_settings(
    file: Path | None, given: Mapping[str, object], resume: Path | None = None
) -> Config:
    """One valid configuration of a file and of values as they are; an empty text is a value too.

    Raises:
        ConfigError: as ``gather``.
    """
    settings = flat_settings(read_toml(file)) if file else {}
    config = _complete(settings | flat_settings(given), resume)
    if not config.run.resume:
        check_sites(config)
    return config


def _complete(settings: dict[str, object], resume: Path | None) -> Config:
    """The settings with absolute paths and those of their preset, or of the run that is resumed."""
    settings = resolve_paths(with_app_folder(settings))
    if named := settings.pop("resume", ""):
        resume = resume or Path(str(named))
    if resume is not None:
        return _resume(settings, resume)
    from shared.models.load import check_name

    config = configure(expand_preset(settings))
    check_name(config.model.name)
    check_data(config)
    return config


def with_app_folder(settings: Mapping[str, object]) -> dict[str, object]:
    """The same settings; a problem of one's own is looked for in the current folder too."""
    return {**({"app-dir": str(Path.cwd())} if settings.get("app") else {}), **settings}


def resolve_paths(settings: Mapping[str, object]) -> dict[str, object]:
    """The same settings with absolute paths of what is there, and with ``~`` for the home folder.

    A run may then be looked at from another folder, and its processes may start in others. A name
    that is known keeps its meaning, whatever folder has the same name; the log says so.
    """
    return {
        key: _resolve(key, value) if isinstance(value, str) and value else value
        for key, value in settings.items()
    }


def _resolve(key: str, value: str) -> str:
    if key not in (*FOLDERS, *PATHS):
        return value
    path = Path(value).expanduser()
    if key not in FOLDERS and not path.exists():
        return str(path) if value.startswith("~") else value
    if key not in FOLDERS and value in _names_of(key):
        LOG.warning("%s = %s is what Dandelion knows by this name; the one here is ./%s",
                    key, value, value)  # fmt: skip
        return value
    return str(path.absolute())


def _names_of(key: str) -> list[str]:
    """The registered names that a setting may have, which are no paths."""
    if key == "model":
        from shared.models.packaged import model_names

        return model_names()
    from shared.data.documents import DATASETS

    return list(DATASETS.names()) if key != "init-from" else []


def read_pairs(pairs: Sequence[str]) -> dict[str, object]:
    """Settings by flat key from texts ``key=value``; the last of a key wins.

    Raises:
        ConfigError: a text is not of this form, there is no such setting, or a value is not of the
            setting's type.
    """
    settings: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set key=value expected, got {pair!r}")
        settings[flat_key(key.strip())] = parse(key.strip(), text.strip())
    return resolve_paths(flat_settings(settings))


def key_of(pair: str) -> str:
    """The flat key that a text ``key=value`` sets."""
    return flat_key(pair.partition("=")[0].strip())


def _resume(settings: Mapping[str, object], folder: Path) -> Config:
    """The configuration that a run's folder records, with the settings that may change."""
    from server.ledger.run_folder import CONFIG  # torch takes a second

    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: no run to resume; {CONFIG} expected in it")
    free = RESUMABLE - {"run-name", "output-dir"}  # it stays where it is
    if fixed := sorted(set(settings) - free):
        option_of(fixed[0])  # a misspelt one is no setting
        raise ConfigError(f"a resumed run keeps {fixed}; it may be given {sorted(free)}")
    recorded = with_former_defaults(read_toml(folder / CONFIG))
    return configure({**recorded, **settings, "resume": str(folder.resolve())})


def check_sites(config: Config) -> None:
    """Refuse to wait for more sites than the engines of this command make.

    Raises:
        ConfigError: ``min-sites`` or ``min-replies`` is above ``num-clients``.
    """
    sites = config.federation.num_clients
    for key, needed in (
        ("min-sites", config.federation.min_sites),
        ("min-replies", config.federation.min_replies),
    ):
        if needed > sites:
            raise ConfigError(
                f"{key}: at most num-clients = {sites} expected here, "
                f"got {needed}: the run would wait for sites that never come"
            )


def read_toml(file: Path) -> dict[str, object]:
    """A TOML file's top level.

    Raises:
        ConfigError: it is not there or not TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"{file}: {error}") from error
