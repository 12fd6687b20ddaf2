"""Settings from the command line: a file, then single values, then what a resumed run recorded."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from dandelion.settings.presets import expanded
from shared.base.errors import ConfigError
from shared.config.schema import OPERATIONAL, Config, Value, parse


def gather(
    file: Path | None, pairs: list[str], resume: Path | None = None, **given: Value
) -> Config:
    """One checked configuration, for an engine that makes ``num-clients`` sites.

    Raises:
        ConfigError: as ``gather_deployed``, or more sites are waited for than there will be.
    """
    config = gather_deployed(file, pairs, resume, given)
    if not config.resume:
        check_sites(config)
    return config


def gather_deployed(
    file: Path | None, pairs: list[str], resume: Path | None, given: Mapping[str, Value]
) -> Config:
    """One checked configuration, whatever sites may come; later sources win.

    Raises:
        ConfigError: a pair is not ``key=value``, a value does not fit, a file cannot be read, or a
            resumed run is given a key that would make another run of it.
    """
    settings: dict[str, object] = dict(read_toml(file)) if file else {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set key=value expected, got {pair!r}")
        settings[key.strip()] = parse(key.strip(), text.strip())
    settings |= {key: value for key, value in given.items() if value != ""}
    if named := settings.pop("resume", ""):
        resume = resume or Path(str(named))
    if resume is None:
        from shared.models.load import check_name

        config = Config.from_run_config(expanded(settings))
        check_name(config.model)
        return config
    from server.ledger.run_folder import CONFIG  # torch takes a second

    if not (resume / CONFIG).is_file():
        raise ConfigError(f"{resume}: no run to resume; {CONFIG} expected in it")
    free = OPERATIONAL - {"run-name", "output-dir"}  # it stays where it is
    if fixed := sorted(set(settings) - free):
        raise ConfigError(f"a resumed run keeps {fixed}; it may be given {sorted(free)}")
    recorded = read_toml(resume / CONFIG)
    return Config.from_run_config({**recorded, **settings, "resume": str(resume.resolve())})


def check_sites(config: Config) -> None:
    """Refuse to wait for more sites than the engines of this command make.

    Raises:
        ConfigError: ``min-clients`` is above ``num-clients``.
    """
    if config.min_clients > config.num_clients:
        raise ConfigError(
            f"min-clients: at most num-clients = {config.num_clients} expected here, "
            f"got {config.min_clients}: the run would wait for sites that never come"
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
