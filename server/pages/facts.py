"""What a run was, in words: its identity, settings, versions, and what it spent of privacy."""

import json
import platform
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from server.ledger.reader import LedgerReader
from shared.base.errors import ConfigError
from shared.base.options import Value
from shared.base.text import portable
from shared.config.schema import Config, settings
from shared.privacy.accounting import Rounds, epsilon_of, noise_for, rate_bits_of
from shared.training.components import effective_options, options_in_use

SUMMARY = "summary.json"
PACKAGES = ("dandelion", "torch", "transformers", "flwr", "numpy")
MOST_COSTS = 8  # different costs of privacy that are computed: each takes a part of a second
# settings that say where files lie or how a process was named, not what was learned
OF_THIS_MACHINE = ("output-dir", "app-dir", "resume", "run-name")


@dataclass(frozen=True)
class SettingRow:
    """A setting of a run, its default and its meaning."""

    key: str
    value: Value
    default: Value
    meaning: str

    @property
    def is_changed(self) -> bool:
        """Whether the run differs from the default."""
        return self.value != self.default


def setting_rows(config: Config) -> list[SettingRow]:
    """All settings of a run, those of its components last."""
    rows = [
        SettingRow(key, value, settings()[key].default, settings()[key].meaning)
        for key, value in config.to_run_config().items()
        if key in settings()
    ]
    values = effective_options(config)
    return rows + [
        SettingRow(key, values[key], each.default, f"{each.meaning} ({whose})")
        for key, (whose, each) in options_in_use(config).items()
    ]


def name_of_data(config: Config) -> str:
    """The data set as others may know it: a folder without the path on this machine."""
    return config.model.app or portable(config.data.dataset)


def identity(
    folder: Path, ledger: LedgerReader, config: Config, round_: int | None = None
) -> dict[str, str]:
    """The run's names and numbers, by title, as they were after a round or are now.

    Of folders on this machine only the last part is named.
    """
    last = ledger.last_round if round_ is None else round_
    metrics = [each for each in ledger.metrics() if each.round <= last]
    digest = ledger.digest(last)
    times = [metrics[0].timestamp, metrics[-1].timestamp] if metrics else ["–", "–"]
    return {
        "run": folder.absolute().name,
        "run id": ledger.header("run").hex(),
        "model": config.model.app or portable(config.model.name),
        "trained": scope_text(config, read_summary(folder)),
        "data": f"{name_of_data(config)}, {config.data.task}, {config.data.partitioner}",
        "method": f"mode {config.training.mode}, optimizer {config.optimizer.name}",
        "rounds": f"{last:,} of {config.training.rounds:,}",
        "seed": str(config.training.seed),
        "first round": times[0],
        "last round": times[1],
        "digest of the parameters": "not noted" if digest is None else digest.hex(),
        "digest of the base model": ledger.header("base").hex(),
        "chain of the ledger": ledger.chain(last).hex(),
        "source files": ledger.header("code").hex(),
        "versions": ", ".join(f"{name} {text}" for name, text in versions().items()),
    }


def scope_text(config: Config, summary: dict[str, Any]) -> str:
    """What is trained, and how many parameters that are, if the run has finished."""
    count = summary.get("parameters")
    return f"scope {config.model.scope}" + (f", {count:,} parameters" if count else "")


def read_summary(folder: Path) -> dict[str, Any]:
    """The numbers of ``summary.json``; none before the run has finished."""
    path = folder / SUMMARY
    if not path.exists():
        return {}
    summary: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return summary


def versions() -> dict[str, str]:
    """The versions of Python and of what computes, in this process."""
    rows = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            rows[name] = version(name)
        except PackageNotFoundError:
            rows[name] = "not installed"
    return rows


def privacy_rows(ledger: LedgerReader, config: Config) -> list[tuple[str, str, str]]:
    """What the run's rounds cost its sites: rounds, (ε, δ), and at how many sites.

    It is computed of what the ledger has. A site's own account also counts its other runs.
    Rows are of equal cost; after the first few costs the others are only counted.
    """
    rounds, delta = ledger.count_contributions(), config.privacy.delta
    costs = Counter(
        (rounds.get(each.site, 0), rate_bits_of(config.zo.batch_size, max(each.examples, 1)))
        for each in ledger.sites()
    )
    rows = [
        (f"{times:,} with batches at rate 1/{1 << bits}", _cost(config, times, bits),
         f"{sites:,}")
        for (times, bits), sites in sorted(costs.items(), reverse=True)[:MOST_COSTS]
    ]  # fmt: skip
    if rest := sum(costs.values()) - sum(int(row[2].replace(",", "")) for row in rows):
        rows.append(("other numbers", f"not computed here, δ = {delta:g}", f"{rest:,}"))
    return rows


def _cost(config: Config, times: int, bits: int) -> str:
    privacy = config.privacy
    try:
        noise = privacy.noise or noise_for(
            privacy.epsilon, privacy.delta, config.training.rounds, bits
        )
        epsilon = epsilon_of([Rounds(times, noise, bits)], privacy.delta)
    except ConfigError as error:
        return str(error)
    return f"ε = {epsilon:.3g}, δ = {privacy.delta:g}, noise of {noise:.3g} clips"
