"""The settings of what is learned: method, data, model, estimate, gradients and optimizer.

Each section is a frozen dataclass; ``config.zo.eps`` is the setting ``eps``. A field's key is its
name with hyphens unless it gives another, so that names on the command line stay flat and unique.
"""

import re
from dataclasses import dataclass

from shared.base.errors import ConfigError, UnknownNameError
from shared.base.options import option, options_of
from shared.config.scope_names import LINEAR_SCOPES, MASK_SCOPE, check_scope

AUTO = "auto"
USUAL_RATE = 2e-2  # where a rate is needed and none is given
OBJECTIVES = ("loss", "accuracy", "f1", "margin")
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # module:function
BP, MEASURING = "fo, calibrate, instruct, fedavg", "zo, calibrate, instruct"


@dataclass(frozen=True, kw_only=True)
class Section:
    """Settings that belong together; each is checked when the section is made.

    Raises:
        ConfigError: a value is of another type or out of its range.
    """

    def __post_init__(self) -> None:
        for name, each in options_of(type(self)).items():
            object.__setattr__(self, name, each.check(getattr(self, name)))


# fmt: off
@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Section):
    """The method and how long it runs."""

    mode: str = option(
        "zo", "which gradient a round uses: zo, fo, calibrate, instruct, fedavg or a plug-in's")
    rounds: int = option(150, "rounds to be committed in all", key="num-rounds", at_least=1,
                         unit="rounds", resumable=True)
    epochs: float = option(0.0,
                           "passes over the sites' examples, in place of num-rounds; 0: num-rounds",
                           at_least=0, resumable=True)
    local_steps: int = option(1, "K: steps at the site before it replies", at_least=1,
                              used_by="zo, fedavg")
    local_learning_rate: float = option(
        0.0, "step size of the local steps; 0: the round's learning rate", at_least=0,
        used_by="zo, fedavg")
    seed: int = option(1, "names every random choice of the run", below=2**63)


@dataclass(frozen=True, kw_only=True)
class DataSettings(Section):
    """The task and its examples, and how these are partitioned over the sites."""

    task: str = option("language-modelling",
                       "language-modelling; classification by a head or by words after a prompt; "
                       "instruction: responses to prompts; generation: these, judged by writing; "
                       "multiple-choice: one of a question's own choices; regression: a number")
    label_words: str = option("", "a word for each class, with commas, in their order; "
                             "a class with a comma in it stands in quotation marks",
                              used_by="classification")
    label_scoring: str = option(
        "auto", "of a causal model: the logit of a label's first token, or the log-likelihood of "
        "all its tokens, summed or their mean; auto: first if these differ, else sum",
        choices=("auto", "first", "sum", "mean"), used_by="classification, multiple-choice")
    prompt: str = option("{text} It was",
                         "what a causal model reads before it chooses among the words; the text "
                         "may stand in it twice",
                         used_by="classification")
    dataset: str = option(
        "stdlib", "a name of dandelion data list, a folder, or owner/name[:config] on the hub",
        path=True)
    text_column: str = option(
        "", "of a folder of tables: columns that are a document's text, with commas; empty: text, "
        "sentence or content")
    label_column: str = option("", "of a folder of tables: the column of classes; empty: label")
    max_samples: int = option(
        0, "documents taken from it; 0: all, or of a large set those recommended", unit="documents")
    block_size: int = option(64, "length of one example", at_least=2, unit="tokens")
    batch_order: str = option(
        "drawn", "each step draws its batch; or epochs: a site's examples in a new order in each",
        choices=("drawn", "epochs"))
    partitioner: str = option(
        "natural", "how examples are dealt to sites; names: shared/data/partition_rules.py")
    partition_by: str = option(
        "",
        "the natural id that is dealt: play, role, ..., or label; empty: the data set's usual one")
    part: str = option("", "k/n: only the k-th of every n groups is trained and evaluated on",
                       key="data-part")
    partition_alpha: float = option(0.5,
                                    "concentration of the Dirichlet distribution: small is skewed",
                                    above=0, used_by="dirichlet partitioners")
    partition_classes: int = option(2, "how many ids a site has", at_least=1,
                                    used_by="flower-pathological partitioner")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Section):
    """What the model is evaluated on, and how often."""

    fraction: float = option(0.1, "share of each group's examples held out for the server",
                             key="eval-fraction", above=0, below=1)
    blocks: int = option(128, "how many of these are evaluated at most", key="eval-blocks",
                         at_least=1, unit="examples")
    dataset: str = option("", "its held-out part is what is evaluated on; empty: that of dataset",
                          key="eval-dataset", path=True)
    site_fraction: float = option(
        0.0, "share of its examples that a site evaluates on; 0: it does not evaluate",
        key="site-eval-fraction", at_least=0, below=1)
    interval: int = option(
        10, "rounds between evaluations; the first and the last round are always evaluated",
        key="eval-interval", unit="rounds", resumable=True)


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Section):
    """The model, and which of its parameters are trained."""

    name: str = option(
        "byte-gpt",
        "a registered name, a hub name, a folder in Hugging Face format, or a GGUF file",
        key="model", path=True)
    app: str = option(
        "", "one's own problem, as module:attribute, in place of model, data set and task")
    dtype: str = option("float32",
                        "of the parameters; with bfloat16, updates are rounded stochastically",
                        choices=("float32", "bfloat16"))
    init_from: str = option(
        "", "a run folder or a model folder to start from; empty: the model untrained", path=True)
    scope: str = option("full",
                        "what is trained: full, lora, bias, reduced, head, last:<blocks>, "
                        "last:<blocks>:bias, words, prior, regex:<pattern>, mask:<share>, or "
                        "mask:<share>:<scope>")
    mask: str = option(
        "auto", "the addresses that are trained, chosen at a run's start by squared gradients of "
        "the server's own examples (auto)", used_by="scope mask")
    features: str = option(
        "", "parts of the kept feature vector, joined by +: last, mean, first, "
        "layer:<k>:<pooling>; with @2, of the text in the first of more-prompts",
        used_by="scopes words and prior; head: a new linear head on them")
    feature_scaling: str = option(
        "auto", "mean and deviation of the features, computed at a run's start (auto); "
        "whiten:<k>: their k main components besides; or none",
        used_by="scopes words and prior; head with features")
    lora_rank: int = option(8, "columns of an adapter's matrices", at_least=1, used_by="scope lora")
    lora_alpha: int = option(16, "an adapter's output counts alpha / rank", at_least=1,
                             used_by="scope lora")
    lora_targets: str = option("",
                               "names of adapted modules, with commas; empty: PEFT's own choice",
                               used_by="scope lora")
    lora_blocks: int = option(0, "only the last so many blocks are adapted; 0: all", unit="blocks",
                              used_by="scope lora")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scope(self.scope)
        if self.features and self.scope not in (*LINEAR_SCOPES, "head"):
            raise ConfigError(
                f"features {self.features!r} need scope words, prior or head, got {self.scope!r}"
            )

    @property
    def is_linear(self) -> bool:
        """Whether logits are linear in all that is trained, on features that stay the same."""
        return self.scope in LINEAR_SCOPES or (self.scope == "head" and bool(self.features))

    @property
    def is_masked(self) -> bool:
        """Whether only the addresses of a fixed mask are trained."""
        return self.scope.startswith(MASK_SCOPE)


@dataclass(frozen=True, kw_only=True)
class ZoSettings(Section):
    """The zeroth-order estimate: loss differences along random directions."""

    queries: int = option(16, "q: directions of one step; see estimator for what each costs",
                          at_least=1, used_by=MEASURING)
    estimator: str = option(
        AUTO, "two-point: 2q evaluations; forward: q + 1; exact: unperturbed; auto: cheapest",
        choices=(AUTO, "two-point", "forward", "exact"), used_by=MEASURING)
    centre_differences: bool = option(
        True, "what curvature adds to all numbers of a step is taken out: their mean, from 4 "
        "queries on; false: as DeComFL and FZOO are published", used_by="estimator forward")
    parallel_queries: int = option(
        1, "p: directions of one forward pass (lowrank: cheapest), both signs", at_least=1,
        used_by=MEASURING)
    eps: float = option(1e-3, "smoothing radius: how far a site steps along each direction",
                        above=0, used_by=MEASURING)
    directions: str = option("rademacher", "family of directions", used_by=MEASURING)
    seed_schedule: str = option("shared",
                                "whether all sites measure the same directions or each its own",
                                choices=("shared", "independent"), used_by=MEASURING)
    batch_size: int = option(4, "examples measured per step; 0: all of a site's",
                             key="zo-batch-size", unit="examples", used_by=MEASURING)
    query_data: str = option("same",
                             "one batch for all queries, fresh ones, or one of all these (shared)",
                             choices=("same", "fresh", "shared"), used_by=MEASURING)
    objective: str = option(
        "loss", "what is measured: loss, accuracy, f1, margin, or a reward, module:function",
        used_by="zo")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in OBJECTIVES and not FUNCTION.fullmatch(self.objective):
            raise UnknownNameError("objective", self.objective, (*OBJECTIVES, "module:function"))


@dataclass(frozen=True, kw_only=True)
class BpSettings(Section):
    """Gradients by backpropagation: when, on what, and how they travel and join the estimate."""

    interval: int = option(10, "rounds 1, 1 + so many, ... also backpropagate", key="bp-interval",
                           at_least=1, unit="rounds", used_by="calibrate, instruct")
    learning_rate: float = option(0.0, "of rounds that backpropagate; 0: learning-rate",
                                  key="bp-learning-rate", at_least=0,
                                  used_by="fo, calibrate, instruct")
    batch_size: int = option(4, "examples backpropagated per step; 0: all of a site's",
                             key="bp-batch-size", unit="examples", used_by=BP)
    dataset: str = option("", "what is backpropagated on, dealt to the sites; empty: dataset",
                          key="bp-dataset", used_by=BP, path=True)
    max_samples: int = option(0, "examples of a site that are backpropagated on; 0: all",
                              key="bp-max-samples", unit="examples", used_by=BP)
    split_data: bool = option(False, "a site's examples are halved: one half is backpropagated on",
                              key="split-bp-zo-data", used_by=BP)
    codec: str = option("float32", "how gradients of one number per parameter travel", used_by=BP)
    error_feedback: bool = option(False,
                                  "what a codec loses is added to the sender's next gradient",
                                  used_by=BP)
    weight: str = option(
        "0.5", "weight of the gradient against the estimate: a number from 0 to 1, or auto",
        key="bp-weight", used_by="instruct")
    instruct_directions: str = option("tilted", "how directions lean on the gradient",
                                      choices=("tilted", "masked"), used_by="instruct")
    cosine_target: float = option(0.9, "cosine of a direction to the gradient", above=0, below=1,
                                  used_by="instruct")
    guidance: str = option(
        "fresh", "between BP rounds: plain directions, or along the last gradient (reuse)",
        choices=("fresh", "reuse"), used_by="instruct")

    def __post_init__(self) -> None:
        super().__post_init__()
        weight_of(self.weight)


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(Section):
    """What turns the estimate into a step; an optimizer's own options: dandelion settings."""

    name: str = option("sgd", "what turns the estimate into a step", key="optimizer")
    step: str = option(
        AUTO, "auto: learning-rate if one is given, else as falls of the loss tell; plain: "
        "learning-rate; normalised: movement", choices=(AUTO, "plain", "normalised"))
    learning_rate: float = option(
        0.0, "step size, if step is plain or a round backpropagates; 0: not given, 0.02 where one "
        "is needed", at_least=0)
    step_version: int = option(
        2, "how auto goes; 1 is said of a run of before, whose rates cannot be computed anew",
        at_least=1, at_most=2, used_by="step auto")
    movement: float = option(
        0.0, "root mean square way of a parameter in a round; 0: by their number", at_least=0,
        below=1, used_by="step normalised; the first round of step auto")
    step_memory: float = option(
        0.9, "share of the past in the mean squared slope; 0: of this round alone", at_least=0,
        below=1, used_by="step normalised")
    schedule: str = option("constant",
                           "of the learning rate; linear and cosine end at zero in the last round",
                           key="lr-schedule", choices=("constant", "linear", "cosine"))
    warmup_rounds: int = option(0, "over which the learning rate rises from zero", unit="rounds")

    @property
    def rate(self) -> float:
        """The learning rate of a run whose settings say it: the one that is given, or 0.02."""
        return self.learning_rate or USUAL_RATE
# fmt: on


def weight_of(text: str) -> float | None:
    """The number that ``bp-weight`` is; None if it is to be estimated (auto).

    Raises:
        ConfigError: neither a number from 0 to 1 nor auto.
    """
    if text == AUTO:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(f"bp-weight: auto or a number from 0 to 1 expected, got {text!r}")
    return value
