"""What a client must know of a run in somebody else's app: sent once, as JSON, to each client."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property

from shared.base.errors import ConfigError, WireError
from shared.base.options import Value
from shared.config.schema import Config

# settings that decide a client's numbers; an optimizer's and a family's own options come with them
SETTINGS = ("seed", "queries", "eps", "estimator", "directions", "seed-schedule", "optimizer",
            "dtype")  # fmt: skip
MOST_CHARACTERS = 1 << 16


@dataclass(frozen=True)
class AppRun:
    """A run as its clients know it."""

    settings: Mapping[str, Value]  # by flat key: SETTINGS and options of components
    batches: int  # measured in a round; 0: all that the client's data gives
    weight_key: str  # of the metric by which a client is weighted
    initial: str  # digest of the trained parameters at round 0, hexadecimal
    frozen: str  # digest of all other tensors, and of the layout of the trained ones, hexadecimal

    @cached_property
    def config(self) -> Config:
        """The configuration that these settings are; all others have their defaults.

        Raises:
            ConfigError: a setting has the wrong type or is out of range.
        """
        return Config(self.settings)

    def encode(self) -> str:
        """Return a JSON object of the fields."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def decode(cls, text: str) -> "AppRun":
        """Read what ``encode`` wrote.

        Raises:
            WireError: a field is missing or has another type, or a setting is none.
        """
        if len(text) > MOST_CHARACTERS:
            raise WireError(f"a run of up to {MOST_CHARACTERS} characters expected: {len(text)}")
        try:
            read = json.loads(text)
            run = cls(*(read[field.name] for field in fields(cls)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise WireError(f"the settings of a run expected, got {text[:80]!r}") from error
        kinds = (dict, int, str, str, str)
        values = (run.settings, run.batches, run.weight_key, run.initial, run.frozen)
        if not all(type(v) is kind for v, kind in zip(values, kinds, strict=True)):
            raise WireError(f"the settings of a run expected, got {text[:80]!r}")
        try:
            run.config  # noqa: B018  (checks types and ranges)
        except ConfigError as error:
            raise WireError(f"the settings of a run cannot be used: {error}") from error
        return run


def settings_to_send(config: Config) -> dict[str, Value]:
    """Those settings of a run that decide a client's numbers, by flat key."""
    every = config.to_run_config()
    return {key: every[key] for key in (*SETTINGS, *config.options)}
