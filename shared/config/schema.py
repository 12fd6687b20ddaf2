"""One frozen, typed configuration, checked before any message is sent."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any
from unicodedata import category

from shared.base.errors import ConfigError, UnknownNameError
from shared.config.rules import check_combinations, weight_of

Value = str | int | float | bool

CHOICES = {
    "mode": ("fo", "zo", "calibrate", "instruct", "fedavg"),
    "instruct-directions": ("tilted", "masked"),
    "guidance": ("fresh", "reuse"),
    "query-data": ("same", "fresh", "shared"),
    "seed-schedule": ("shared", "independent"),
    "aggregation": ("mean", "median", "trimmed-mean", "krum", "multi-krum", "bulyan"),
    "downlink": ("replay", "dense"),
    "catch-up": ("auto", "replay", "snapshot"),
    "server-replica": ("eager", "lazy"),
    "lr-schedule": ("constant", "linear", "cosine"),
    "dtype": ("float32", "bfloat16"),
}
SCOPES = ("full", "lora", "bias", "reduced", "head")
POSITIVE = ("num-rounds", "num-clients", "queries", "local-steps", "zo-batch-size", "block-size",
            "eval-blocks", "min-clients", "max-skipped-rounds", "threads", "eps", "learning-rate",
            "round-timeout", "wait-timeout", "partition-alpha", "adam-epsilon", "eval-fraction",
            "bp-interval", "bp-batch-size", "topk-fraction", "cosine-target", "lora-rank",
             "lora-alpha", "direction-rank", "parallel-queries", "guard-rate-factor",
             "guard-tolerance", "log-interval", "partition-classes")  # fmt: skip
FRACTIONS = ("eval-fraction", "site-eval-fraction", "trim-fraction", "momentum", "beta1", "beta2",
             "cosine-target", "guard-rate-factor")  # fmt: skip
NOT_NEGATIVE = ("epochs", "bp-learning-rate", "local-learning-rate", "weight-decay",
                "resend-after")  # fmt: skip
MOST_THREADS = 1024
NOT_TEXT = ("Cc", "Cs")  # Unicode categories: control characters, lone surrogates
OPERATIONAL = frozenset({"num-rounds", "epochs", "log-interval",
                         "output-dir", "run-name", "resume", "wait-timeout",
                         "round-timeout", "resend-after", "max-skipped-rounds", "eval-interval",
                         "snapshot-interval", "catch-up", "save-model", "guard-rewinds",
                         "preflight-rounds", "guard-rate-factor", "guard-tolerance",
                         "server-replica"})  # fmt: skip


@dataclass(frozen=True)
class Config:
    """What a run is. Keys are these names with hyphens; ``pyproject.toml`` has the defaults."""

    mode: str = "zo"  # which gradient a round uses: fo, zo, calibrate, instruct; fedavg
    bp_interval: int = 10  # calibrate, instruct: rounds 1, 1 + so many, … also backpropagate
    bp_learning_rate: float = 0.0  # of rounds that backpropagate; 0 = learning-rate
    codec: str = "float32"  # how gradients of one number per parameter travel
    topk_fraction: float = 0.01  # codec topk: share of the numbers that is kept
    error_feedback: bool = False  # what a codec loses is added to the sender's next gradient
    instruct_directions: str = "tilted"  # how directions lean on the gradient: tilted or masked
    cosine_target: float = 0.9  # instruct: cosine of a direction to the gradient
    bp_weight: str = "0.5"  # instruct: weight of the gradient against the estimate, or auto
    guidance: str = "fresh"  # instruct, between BP rounds: plain directions, or reuse the last one
    task: str = "language-modelling"  # or classification, by a head or by words after a prompt
    label_words: str = ""  # classification: a word for each class, with commas, in their order
    prompt: str = "{text} It was"  # what a causal model reads before it chooses among the words
    model: str = "byte-gpt"  # a registered name, a hub name, a folder in Hugging Face format, GGUF
    dtype: str = "float32"  # of the parameters; with bfloat16, updates are rounded stochastically
    dataset: str = "stdlib"  # dandelion data list; or a folder, or owner/name[:config] on the hub
    max_samples: int = 0  # documents taken from it; 0 = all, or of a large set those recommended
    block_size: int = 64  # tokens of one example
    partitioner: str = "natural"  # how examples are dealt to sites: shared/data/partition_rules.py
    partition_by: str = ""  # the natural id that is dealt: play, role, …, or label; empty = usual
    data_part: str = ""  # k/n: only the k-th of every n groups is trained and evaluated on
    partition_alpha: float = 0.5  # dirichlet: small is skewed
    partition_classes: int = 2  # flower-pathological: how many ids a site has
    eval_fraction: float = 0.1  # share of each group's blocks held out for the server
    eval_blocks: int = 128  # at most so many of them are evaluated
    eval_dataset: str = ""  # its held-out part is what is evaluated on; empty = that of dataset
    site_eval_fraction: float = 0.0  # of its examples, which a site evaluates on; 0 = it does not
    eval_interval: int = 10  # rounds between evaluations; the first and the last are always done
    scope: str = "full"  # what is trained: full, lora, bias, reduced, head, or regex:<pattern>
    lora_rank: int = 8  # columns of an adapter's matrices
    lora_alpha: int = 16  # an adapter's output counts alpha / rank
    lora_targets: str = ""  # names of adapted modules, with commas; empty = PEFT's own choice
    init_from: str = ""  # a run folder or a model folder to start from; empty = the model untrained
    num_rounds: int = 150  # rounds to be committed in all
    epochs: float = 0.0  # passes over the sites' examples, in place of num-rounds; 0 = num-rounds
    num_clients: int = 8  # sites: those that an engine makes, or that a deployment expects
    merge_clients: bool = False  # local engine: sites with the same keys share forward passes
    clients_per_round: int = 0  # cohort; 0 = every site that is there
    min_clients: int = 1  # valid replies that a round needs; sites that it waits for
    queries: int = 16  # q: directions of one step; each costs two forward passes
    parallel_queries: int = 1  # p: directions of one forward pass (lowrank: cheapest), both signs
    eps: float = 1e-3  # smoothing radius: how far a site steps along each direction
    directions: str = "rademacher"  # family of directions
    direction_rank: int = 1  # lowrank: outer products that a matrix's direction is the sum of
    seed_schedule: str = "shared"  # whether all sites measure the same directions or each its own
    local_steps: int = 1  # K: steps on the site before it replies
    local_learning_rate: float = 0.0  # step size of these; 0 = the round's learning rate
    zo_batch_size: int = 4  # examples measured per step
    query_data: str = "same"  # one batch for all queries, fresh ones, or one of all these (shared)
    bp_batch_size: int = 4  # examples backpropagated per step
    bp_dataset: str = ""  # what is backpropagated on, dealt to the sites; empty = dataset
    bp_max_samples: int = 0  # examples of a site that are backpropagated on; 0 = all
    split_bp_zo_data: bool = False  # a site's examples are halved: one half is backpropagated on
    optimizer: str = "sgd"  # what turns the estimate into a step: sgd, adam, mudamw
    learning_rate: float = 2e-2
    lr_schedule: str = "constant"  # or cosine, linear: to zero in the last round
    warmup_rounds: int = 0  # over which the learning rate rises from zero
    momentum: float = 0.0  # sgd
    weight_decay: float = 0.0
    beta1: float = 0.9  # adam, mudamw
    beta2: float = 0.999
    adam_epsilon: float = 1e-8
    cautious: bool = False  # mudamw: drop coordinates where update and gradient disagree
    aggregation: str = "mean"  # how the sites' coefficients become one set
    trim_fraction: float = 0.2  # trimmed-mean: cut from each side
    malicious_clients: int = 1  # krum, multi-krum, bulyan: how many sites may lie
    staleness: int = 0  # 1: a round is asked for before the last one is in, and measured one behind
    downlink: str = "replay"  # scalars, or full parameters every round (for comparison)
    catch_up: str = "auto"  # what a site that missed rounds gets: the fewer bytes, or as said
    server_replica: str = "eager"  # follow the ledger every round, or only when needed (lazy)
    snapshot_interval: int = 100  # rounds between snapshots; 0 = none
    preflight_rounds: int = 500  # runs from so many rounds on try their settings first; 0 = never
    guard_rewinds: int = 8  # how often a run that diverges may go back; 0: never
    guard_rate_factor: float = 0.3  # all learning rates are multiplied by it each time
    guard_tolerance: float = 0.2  # how far losses may rise, as a share of the best or first loss
    round_timeout: float = 3600.0  # seconds until a missing reply counts as missing
    resend_after: float = 60.0  # seconds, at least, until a silent site is asked again; 0: never
    wait_timeout: float = 3600.0  # seconds to wait for min-clients before giving up
    max_skipped_rounds: int = 5  # in a row
    seed: int = 1  # names every random choice of the run
    threads: int = 1  # compute threads of a process; measured losses depend on it, replicas do not
    device: str = "cpu"  # where the replicas live
    output_dir: str = "runs"  # the run folder is made in it
    run_name: str = ""  # its name; empty = mode, model and time
    resume: str = ""  # a run folder to go on with
    log_interval: int = 1  # rounds between rows of metrics.csv and clients.csv
    save_model: bool = True  # write the trained model in Hugging Face format at the end

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, object]) -> "Config":
        """Check a mapping of hyphenated keys; what it lacks has its default.

        Raises:
            ConfigError: unknown key, wrong type, out of range, or a combination that cannot work.
        """
        known = {key_of(field.name): field for field in fields(cls)}
        if unknown := sorted(str(key) for key in run_config if key not in known):
            raise ConfigError(f"unknown keys {unknown}; known: {', '.join(sorted(known))}")
        config = cls(**{  # type: ignore[arg-type]
            known[key].name: _typed(key, value, type(known[key].default))
            for key, value in run_config.items()
        })  # fmt: skip
        config._check_names()
        config._check_ranges()
        check_combinations(config)
        return config

    def to_run_config(self) -> dict[str, Value]:
        """The whole configuration with hyphenated keys, as Flower's run config takes it."""
        return {key: getattr(self, name) for name, key in _keys().items()}

    def differences(self, other: "Config") -> list[str]:
        """Keys whose change would make another run of it, with both values."""
        mine, theirs = self.to_run_config(), other.to_run_config()
        return [
            f"{key} = {mine[key]!r} (recorded: {theirs[key]!r})"
            for key in mine
            if key not in OPERATIONAL and mine[key] != theirs[key]
        ]

    def _check_names(self) -> None:
        """Choices, and what modules register; a model may be anywhere, so it is looked up late."""
        from shared.codecs import CODECS
        from shared.data.documents import share_of
        from shared.data.partition_rules import NAMES
        from shared.data.resolve import source_of
        from shared.directions import DIRECTIONS
        from shared.optimizers import OPTIMIZERS
        from shared.tasks.task import TASKS

        known: list[tuple[str, str, Iterable[str]]] = [
            ("codec", self.codec, CODECS.names()),
            ("partitioner", self.partitioner, NAMES),
            ("directions", self.directions, DIRECTIONS.names()),
            ("optimizer", self.optimizer, OPTIMIZERS.names()),
            ("task", self.task, TASKS.names()),
        ]
        for name in (self.dataset, self.bp_dataset, self.eval_dataset):
            source_of(name or self.dataset)
        share_of(self.data_part)
        values = self.to_run_config()
        known += [(key, str(values[key]), names) for key, names in CHOICES.items()]
        for key, name, names in known:
            if name not in names:
                raise UnknownNameError(key, name, names)
        if self.scope not in SCOPES and not self.scope.startswith("regex:"):
            raise UnknownNameError("scope", self.scope, (*SCOPES, "regex:<pattern>"))

    def _check_ranges(self) -> None:
        values = self.to_run_config()
        for key, value in values.items():
            if isinstance(value, int) and key != "seed":
                _require(0 <= value < 2**30, key, value, "an integer from 0 to below 2**30")
        for key in POSITIVE:
            _require(float(values[key]) > 0, key, values[key], "a number above 0")
        for key in FRACTIONS:
            _require(0 <= float(values[key]) < 1, key, values[key], "a number from 0 to below 1")
        for key in NOT_NEGATIVE:
            _require(float(values[key]) >= 0, key, values[key], "a number from 0")
        _require(self.topk_fraction <= 1, "topk-fraction", self.topk_fraction, "at most 1")
        weight_of(self.bp_weight)
        _require(self.trim_fraction < 0.5, "trim-fraction", self.trim_fraction, "below 0.5")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "an integer from 0 to below 2**63")
        _require(self.staleness <= 1, "staleness", self.staleness, "0 or 1")
        _require(self.block_size >= 2, "block-size", self.block_size, "at least 2 tokens")
        _require(self.threads <= MOST_THREADS, "threads", self.threads, f"at most {MOST_THREADS}")
        _require(Path(self.run_name).name == self.run_name != "..", "run-name", self.run_name,
                 "a name without /")  # fmt: skip


@cache
def _keys() -> Mapping[str, str]:
    """Every field's name and its configuration key."""
    return {field.name: key_of(field.name) for field in fields(Config)}


def key_of(name: str) -> str:
    """The configuration key of a field: hyphens for underscores."""
    return name.replace("_", "-")


def parse(key: str, text: str) -> Value:
    """Read a value from the command line as the key's own type; unknown keys stay text.

    Raises:
        ConfigError: the text is not a value of the key's type.
    """
    kind: Any = {k: type(v) for k, v in Config().to_run_config().items()}.get(key, str)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{key}: true or false expected, got {text!r}")
        return text.lower() == "true"
    try:
        value: Value = kind(text)
    except ValueError:
        raise ConfigError(f"{key}: {kind.__name__} expected, got {text!r}") from None
    return value


def _typed(key: str, value: object, kind: type) -> Value:
    if isinstance(value, int) and value.bit_length() > 64:
        raise ConfigError(f"{key}: a number of 64 bits expected, got {value.bit_length()} bits")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"{key}: {kind.__name__} expected, got {type(value).__name__} {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}: a finite number expected, got {value!r}")
    if isinstance(value, str) and any(category(character) in NOT_TEXT for character in value):
        raise ConfigError(f"{key}: text without control characters expected, got {value!r}")
    return value  # type: ignore[return-value]


def _require(holds: bool, key: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{key}: {expected} expected, got {value!r}")
