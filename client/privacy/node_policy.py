"""What a site's operator allows: part of a node's config, checked before anything is measured.

A refusal names the key to the server and says more in the site's own log. These checks are code of
the run, which the server sends: they hold against mistakes and against a server that keeps to its
own code, not against one that sends other code.
"""

import logging
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import NoReturn

from shared.base.errors import ConfigError, PolicyError
from shared.base.options import option
from shared.config.privacy_section import GROUP, LOCAL, SHARED
from shared.config.schema import Config
from shared.modes.estimators import estimator_of

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
    allow_modes: str = option("", "modes of a run, with commas; empty: all")
    allow_scopes: str = option("", "patterns of scopes, with commas, as words,last:*; empty: all")
    eps_range: str = option("", "smoothing radii, as 1e-5..1e-1; empty: all")
    min_batch: int = option(0, "examples of a batch at least")
    max_queries: int = option(0, "directions of a round at most; 0: no limit")
    max_numbers: int = option(0, "numbers of these data over all runs at most; 0: no limit")
    roster: str = option("", "file with names and keys of the sites that sealed sums may be of")
    min_cohort: int = option(3, "sites whose numbers a sealed sum has at least", at_least=2)
    min_colluders: int = option(
        1, "members of a committee that a run must bear to help the server", at_least=0
    )
    allow_snapshots: bool = option(True, "false: parameters come from ledger entries alone")
    allow_evaluation: bool = option(True, "false: no outcome on held-out examples is sent")

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
        low, high = self.range_of_eps
        modes, scopes = _split_list(self.allow_modes), _split_list(self.allow_scopes)
        mode, scope, zo = config.training.mode, config.model.scope, config.zo
        queries = zo.queries * config.training.local_steps
        batch = min(filter(None, (zo.batch_size, config.bp.batch_size)), default=0)
        is_grouped = not config.privacy.is_local or config.privacy.unit == GROUP
        for key, got, holds in (
            ("privacy", config.privacy.mode,
             PROMISES.index(config.privacy.mode) >= PROMISES.index(self.privacy)),
            ("unit", config.privacy.unit, self.unit != GROUP or is_grouped),
            ("allow-modes", mode, not modes or mode in modes),
            ("allow-scopes", scope, not scopes or any(fnmatch(scope, each) for each in scopes)),
            ("eps-range", zo.eps, low <= zo.eps <= high or estimator_of(config) == "exact"),
            ("min-batch", batch, not batch or batch >= self.min_batch),
            ("max-queries", queries, not self.max_queries or queries <= self.max_queries),
            ("min-colluders", config.privacy.colluders,
             not config.privacy.is_sealed or config.privacy.colluders >= self.min_colluders),
            ("allow-evaluation", config.evaluation.site_fraction,
             self.allow_evaluation or not config.evaluation.site_fraction),
        ):  # fmt: skip
            if not holds:
                refuse(key, f"the run has {got!r}, this site allows {getattr(self, _field(key))!r}")

    def check_snapshot(self, has_snapshot: bool) -> None:
        """Refuse parameters that the server sends whole.

        Raises:
            PolicyError: they are not allowed.
        """
        if has_snapshot and not self.allow_snapshots:
            refuse("allow-snapshots", "the request has parameters that no entry gave")


def refuse(key: str, detail: str) -> NoReturn:
    """Refuse by a key of the policy; what stands behind it stays in this process's log.

    Raises:
        PolicyError: always.
    """
    LOG.warning("refused by policy: %s: %s", key, detail)
    raise PolicyError(key)


def _split_list(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _field(key: str) -> str:
    return key.replace("-", "_")
