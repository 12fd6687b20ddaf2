"""What a site's operator allows: part of a node's config, checked before anything is measured.

A refusal names the key to the server and says more in the site's own log. In a guard
(``client/guard/``) these checks are code of the site's own installation. Elsewhere they are code of
the run: they hold against mistakes, not against a server that sends other code.

A list of patterns allows what one of them fits. Patterns after ``!`` refuse, and come first; if all
are of that kind, whatever none of them fits is allowed. So ``!*`` allows nothing.
"""

import logging
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NoReturn

from client.privacy.named_places import apps_of, paths_of_run
from shared.base.errors import ConfigError, PolicyError
from shared.base.options import option
from shared.config.privacy_section import GROUP, LOCAL, SHARED
from shared.config.schema import Config
from shared.modes.batches import EPOCHS
from shared.modes.estimators import estimator_of
from shared.protocol.entry import is_dense
from shared.protocol.messages import Request

LOG = logging.getLogger("dandelion")
PROMISES = ("none", LOCAL, SHARED)  # each hides more than the one before


@dataclass(frozen=True)
class NodePolicy:
    """Keys of a node's config that bound what its data are used for; the defaults allow all."""

    privacy: str = option(
        "none",
        "local: runs without noise are refused; shared: those without sealed sums as well",
        choices=PROMISES,
    )
    privacy_home: str = option("", "folder of secret and budget; empty: in the state folder")
    unit: str = option(
        "example", "group: runs that hide less than a group are refused", choices=("example", GROUP)
    )
    max_epsilon: float = option(
        0.0, "budget of these data over all runs; 0: no limit, but counted", at_least=0
    )
    delta: float = option(1e-5, "that goes with max-epsilon", above=0, below=1)
    min_noise: float = option(
        0.0, "noise of a private run at least, in clips", at_least=0, unit="clips"
    )
    max_rate: float = option(
        0.0,
        "share of the units that a private batch has on average, at most; 0: no limit",
        at_least=0,
        at_most=1,
    )
    max_clip: float = option(0.0, "privacy-clip of a run at most; 0: no limit", at_least=0)
    allow_modes: str = option("", "patterns of modes, with commas; empty: all")
    allow_scopes: str = option("", "patterns of scopes, with commas, as words,last:*; empty: all")
    allow_models: str = option("", "digests of base models, with commas; empty: all")
    allow_paths: str = option(
        "", "patterns of folders and files here that a run may name, with commas; empty: all"
    )
    allow_apps: str = option(
        "", "patterns of module:attribute that a run may import here, with commas; empty: all"
    )
    operators: str = option(
        "", "public keys of those who may start runs here, with commas; empty: anyone"
    )
    eps_range: str = option("", "smoothing radii, as 1e-5..1e-1; empty: all")
    min_batch: int = option(0, "examples of a batch at least", at_least=0)
    max_queries: int = option(0, "directions of a round at most; 0: no limit", at_least=0)
    max_numbers: int = option(
        0, "numbers of these data over all runs at most; 0: no limit", at_least=0
    )
    roster: str = option("", "file with names and keys of the sites that sealed sums may be of")
    min_cohort: int = option(3, "sites whose numbers a sealed sum has at least", at_least=2)
    min_colluders: int = option(
        1, "members of a committee that a run must bear to help the server", at_least=0
    )
    allow_snapshots: bool = option(True, "false: parameters come from ledger entries alone")
    allow_evaluation: bool = option(True, "false: no outcome on held-out examples is sent")
    answer_raster: float = option(
        0.0,
        "a guard's answers leave at multiples of this after a call; 0: at once",
        unit="s",
        at_least=0,
        at_most=10,
    )

    @property
    def range_of_eps(self) -> tuple[float, float]:
        """The smallest and the largest smoothing radius.

        Raises:
            ConfigError: ``eps-range`` is not of the form low..high.
        """
        if not self.eps_range:
            return 0.0, float("inf")
        try:
            low, high = map(float, self.eps_range.split(".."))
        except ValueError:
            low, high = 1.0, 0.0
        if not 0 <= low <= high:
            raise ConfigError(
                f"eps-range: low..high expected, as 1e-5..1e-1, got {self.eps_range!r}"
            )
        return low, high

    def check_run(self, config: Config) -> None:
        """Refuse a run that asks for what the operator does not allow.

        Raises:
            PolicyError: names the key; the log of this process says what came.
        """
        for key, got, holds in (*self._limits(config), *self._lists(config)):
            if not holds:
                refuse(key, f"the run has {got!r}, this site allows {getattr(self, _field(key))!r}")

    def _limits(self, config: Config) -> list[tuple[str, object, bool]]:
        """Keys of a limit, with what the run has, and whether it is within."""
        low, high = self.range_of_eps
        zo, privacy = config.zo, config.privacy
        queries = zo.queries * config.training.local_steps
        batch = min(filter(None, (zo.batch_size, config.bp.batch_size)), default=0)
        if batch and config.data.batch_order == EPOCHS:
            batch = 1  # what is left for the last batch of an epoch
        is_grouped = not privacy.is_local or privacy.unit == GROUP
        return [
            ("privacy", privacy.mode,
             PROMISES.index(privacy.mode) >= PROMISES.index(self.privacy)),
            ("unit", privacy.unit, self.unit != GROUP or is_grouped),
            ("max-clip", privacy.clip, not self.max_clip or privacy.clip <= self.max_clip),
            ("eps-range", zo.eps, low <= zo.eps <= high or estimator_of(config) == "exact"),
            ("min-batch", batch, not batch or batch >= self.min_batch),
            ("max-queries", queries, not self.max_queries or queries <= self.max_queries),
            ("min-colluders", config.privacy.colluders,
             not config.privacy.is_sealed or config.privacy.colluders >= self.min_colluders),
            ("allow-evaluation", config.evaluation.site_fraction,
             self.allow_evaluation or not config.evaluation.site_fraction),
        ]  # fmt: skip

    def _lists(self, config: Config) -> list[tuple[str, object, bool]]:
        """Keys of a list of patterns, with what the run names, and whether it is allowed."""
        named = (
            ("allow-modes", config.training.mode),
            ("allow-scopes", config.model.scope),
            *(("allow-paths", path) for path in paths_of_run(config, self.own_settings)),
            *(("allow-apps", app) for app in apps_of(config)),
        )
        return [
            (key, name, is_allowed(name, split_list(getattr(self, _field(key)))))
            for key, name in named
        ]

    @property
    def own_settings(self) -> frozenset[str]:
        """Settings of a run in whose place the site has something of its own."""
        return frozenset()

    def check_base(self, base: bytes) -> None:
        """Refuse a base model that is not listed, by the digest of its untrained parameters.

        Raises:
            PolicyError: it is another.
        """
        allowed = split_list(self.allow_models)
        if allowed and base.hex() not in allowed:
            refuse("allow-models", f"the run starts from {base.hex()}, this site allows {allowed}")

    def check_noise(self, noise: float, rate_bits: int) -> None:
        """Refuse a private run of too little noise, or of batches that are too large.

        Raises:
            PolicyError: names the key.
        """
        if noise < self.min_noise:
            refuse("min-noise", f"the run has {noise:.3g} clips, {self.min_noise:g} are needed")
        rate = 2.0**-rate_bits
        if self.max_rate and rate > self.max_rate:
            refuse("max-rate", f"the run has {rate:.3g}, this site allows {self.max_rate:g}")

    def check_parameters(self, request: Request, has_snapshot: bool) -> None:
        """Refuse parameters that the server sends whole, or as a gradient of its own making.

        Raises:
            PolicyError: they are not allowed.
        """
        is_whole = has_snapshot or any(is_dense(entry) for entry in request.entries)
        if is_whole and not self.allow_snapshots:
            refuse("allow-snapshots", "the request has parameters that no numbers gave")


def refuse(key: str, detail: str) -> NoReturn:
    """Refuse by a key of the policy; what stands behind it stays in this process's log.

    Raises:
        PolicyError: always.
    """
    LOG.warning("refused by policy: %s: %s", key, detail)
    raise PolicyError(key)


def is_allowed(name: str, patterns: list[str]) -> bool:
    """Whether a list of patterns allows a name, as the module says."""
    refused = [each[1:] for each in patterns if each.startswith("!")]
    allowed = [each for each in patterns if not each.startswith("!")]
    if any(fnmatchcase(name, each) for each in refused):
        return False
    return not allowed or any(fnmatchcase(name, each) for each in allowed)


def split_list(text: str) -> list[str]:
    """The words of a list with commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _field(key: str) -> str:
    return key.replace("-", "_")
