"""The settings of how a run is carried out: federation, divergence guard, and the processes."""

from dataclasses import dataclass
from pathlib import Path

from shared.base.errors import ConfigError
from shared.base.options import option
from shared.config.sections import Section

MOST_THREADS = 1024


# fmt: off
@dataclass(frozen=True, kw_only=True)
class FederationSettings(Section):
    """Sites, cohorts, aggregation, and what travels between rounds."""

    num_clients: int = option(8, "sites: those that an engine makes, or that a deployment expects",
                              at_least=1, unit="sites")
    merge_clients: bool = option(False,
                                 "local engine: sites with the same keys share forward passes")
    clients_per_round: int = option(0, "cohort; 0: every site that is there", unit="sites")
    min_replies: int = option(1, "valid replies that a round needs", at_least=1, unit="replies")
    min_sites: int = option(1, "sites that the server waits for before a round", at_least=1,
                            unit="sites")
    aggregation: str = option("mean", "how the sites' numbers become one set")
    weights: str = option("examples", "what sites count by in a mean: their examples, or equally",
                          choices=("examples", "equal"))
    max_share: float = option(
        0.5, "the most that one site counts if enough others are there; 1: no limit", above=0,
        at_most=1)
    staleness: int = option(
        0, "1: a round is sent out before the last one is in, and measured one behind", at_most=1,
        unit="rounds")
    downlink: str = option(
        "replay", "what sites get each round: numbers, or full parameters (dense, for comparison)",
        choices=("replay", "dense"))
    catch_up: str = option("auto",
                           "what a site that missed rounds gets: the fewer bytes, or as named",
                           choices=("auto", "replay", "snapshot"), resumable=True)
    round_timeout: float = option(3600.0, "until a missing reply counts as missing", above=0,
                                  unit="s", resumable=True)
    resend_after: float = option(60.0, "at least, until a silent site is asked again; 0: never",
                                 at_least=0, unit="s", resumable=True)
    wait_timeout: float = option(3600.0, "how long to wait for min-sites before giving up", above=0,
                                 unit="s", resumable=True)
    max_skipped_rounds: int = option(5,
                                     "how many rounds in a row may be skipped before the run stops",
                                     at_least=1, unit="rounds", resumable=True)


@dataclass(frozen=True, kw_only=True)
class GuardSettings(Section):
    """The preflight before a run, and the divergence guard during it."""

    preflight_rounds: int = option(
        500, "runs of so many rounds or more try their settings first; 0: never", unit="rounds",
        resumable=True)
    rewinds: int = option(8, "how often a run that diverges may go back; 0: never",
                          key="guard-rewinds", resumable=True)
    rate_factor: float = option(0.3, "all learning rates are multiplied by it each time",
                                key="guard-rate-factor", above=0, below=1, resumable=True)
    tolerance: float = option(0.2, "how far losses may rise, as a share of the best or first loss",
                              key="guard-tolerance", above=0, resumable=True)


@dataclass(frozen=True, kw_only=True)
class RunSettings(Section):
    """Processes and files: nothing here changes what is learned, but the first three may."""

    threads: int = option(
        1, "compute threads of a process; measured losses depend on it, replicas do not",
        at_least=1, at_most=MOST_THREADS)
    kernels: str = option(
        "compiled", "what computes the losses of a small GPT-2 of ours on a CPU: a compiled pass, "
        "or torch, slower and with other last bits", choices=("compiled", "torch"))
    device: str = option(
        "cpu", "where the replicas live: cpu, cuda, cuda:1; cuda:0,1 shares a round's directions "
        "out among cards")
    server_replica: str = option(
        "eager", "the server follows the ledger every round, or only when needed (lazy)",
        choices=("eager", "lazy"), resumable=True)
    snapshot_interval: int = option(100, "rounds between snapshots; 0: none", unit="rounds",
                                    resumable=True)
    log_interval: int = option(1, "rounds between rows of metrics.csv and clients.csv", at_least=1,
                               unit="rounds", resumable=True)
    save_model: bool = option(True, "write the trained model in Hugging Face format at the end",
                              resumable=True)
    trackers: str = option(
        "", "what else gets the rounds, with commas: tensorboard, wandb, mlflow or a plug-in",
        resumable=True)
    model_license: str = option(
        "", "its licence, for its card, as the hub spells it; empty: the base model's, if known",
        resumable=True)
    keep_memory: int = option(
        512, "memory of a process for what the frozen part of a model makes of each example",
        at_least=0, unit="MiB", resumable=True)
    keep_disk: int = option(
        4096, "the same in the data cache, of all runs; 0: none is stored there", at_least=0,
        unit="MiB", resumable=True)
    keep_dtype: str = option("float32", "how it is kept; bfloat16 takes half of the bytes",
                             choices=("float32", "bfloat16"))
    app_dir: str = option(
        "", "folder that is searched for the module of app, after those of installed packages",
        resumable=True, path=True)
    output_dir: str = option("runs", "the run folder is made in it", resumable=True, path=True)
    name: str = option("", "of the run folder; empty: mode, model and time", key="run-name",
                       resumable=True, path=True)
    resume: str = option("", "a run folder to go on with", resumable=True, path=True)
    request: str = option("", "an operator's signature on the run; dandelion server run makes it",
                          key="run-request", resumable=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not Path(self.name).name == self.name != "..":
            raise ConfigError(f"run-name: a name without / expected, got {self.name!r}")
# fmt: on
