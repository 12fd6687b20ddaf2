"""The problems that methods are compared on: data, model, budget, and where their rates lie."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dandelion.bench.learning import mnist
from dandelion.bench.learning.methods import DECOMFL, FEDAVG_LORA, FORWARD, TWO_POINT, Settings
from shared.base.errors import UnknownNameError
from shared.packages.package import CARRIERS, is_cached


@dataclass(frozen=True)
class PublishedScores:
    """Held-out accuracies of a method, as a paper has them, that our run of it can be held to."""

    method: str
    bands: Mapping[int, tuple[float, float]]  # by round: the least and the greatest


@dataclass(frozen=True)
class RaceTask:
    """What is learned, from where on, and for how many evaluations per site.

    ``rates`` has the middle of the five rates by method. ``own`` has our rows. ``start`` trains a
    base once, by these settings, that every method starts from.
    """

    name: str
    about: str
    settings: Settings
    evaluations: int  # per site that is requested
    rates: Mapping[str, float]
    own: Mapping[str, Settings]
    published: Mapping[str, Settings] = field(default_factory=dict)  # a peer's own setting here
    without: frozenset[str] = frozenset()
    start: Settings = field(default_factory=dict)
    carriers: tuple[str, ...] = ()  # packages that it needs
    published_scores: PublishedScores | None = None
    install: Callable[[], None] = lambda: None

    @property
    def is_at_hand(self) -> bool:
        """Whether nothing has to be fetched."""
        return all(is_cached(CARRIERS[name]) for name in self.carriers)


COMMON: Settings = {
    "threads": 1,
    "snapshot-interval": 0,
    "log-interval": 10,
    "save-model": False,
    "num-clients": 4,
}
DEMO: Settings = {"num-clients": 8, "eval-blocks": 128}
DEMO_RATES = {
    "mezo": 2e-3, "decomfl": 2e-2, "fedkseed": 4e-3, "fzoo": 2e-2, "fedavg": 8e-3,
    "fedavg-lora": 5e-3, TWO_POINT: 2e-2, FORWARD: 4e-2,
}  # fmt: skip
OWN: Mapping[str, Settings] = {  # 32 evaluations a round each; one more of step = auto
    "two-point": {"estimator": "two-point", "queries": 16, "step": "plain"},
    "forward": {"estimator": "forward", "queries": 31, "step": "plain"},
    "step = auto": {"estimator": "forward", "queries": 31, "step": "auto"},
}
REVIEWS: Settings = {
    "task": "classification", "dataset": "rotten-tomatoes", "block-size": 64, "eval-blocks": 512,
    "zo-batch-size": 16, "bp-batch-size": 16, "partitioner": "iid",
}  # fmt: skip
MINILM: Settings = {**REVIEWS, "model": "minilm", "label-words": "rotten, fresh"}
SMOLLM2: Settings = {**REVIEWS, "model": "smollm2-135m", "label-words": "terrible, great",
                     "max-samples": 2512}  # fmt: skip
SKEWED: Settings = {"partitioner": "dirichlet", "partition-by": "label", "partition-alpha": 0.1}
SMOLLM2_RATES = {
    "mezo": 1e-6, "decomfl": 5e-6, "fedkseed": 3e-7, "fzoo": 3e-5, "fedavg": 2e-5,
    "fedavg-lora": 1e-3, "ours: words": 1e-2,
}  # fmt: skip
# Each word's offset along the kept features, exact slopes of all of a site's examples.
WORDS: Settings = {"scope": "words", "queries": 64, "zo-batch-size": 0, "optimizer": "adam"}
# MNIST: a site's own directions, so that ten sites measure 200 in a round and not the same 20; and
# a linear readout of what the untrained convolutions give, by exact slopes.
PICTURES_OWN: Mapping[str, Settings] = {
    "own keys": {"estimator": "forward", "queries": 20, "step": "plain", "momentum": 0.9,
                 "weight-decay": 1e-5, "seed-schedule": "independent", "lr-schedule": "linear"},
    "readout": {"scope": "head", "features": "first", "feature-scaling": "whiten:128",
                "queries": 64, "step": "auto", "keep-memory": 1024, "keep-disk": 0},
}  # fmt: skip
# Li et al. 2024, arXiv 2405.15861, one local step: the least and the greatest of three seeds, in
# results/mnist_zo_fedavg of their program (github.com/ZidongLiu/DeComFL). By the files' names these
# have differences at both signs (rge-central), unlike their language models. A site goes through
# its 600 pictures in epochs: batches of 256, 256 and 88.
DECOMFL_SETTING: Settings = {
    "estimator": "two-point", "eps": 1e-4, "batch-order": "epochs",
    "queries": 20, "momentum": 0.9, "weight-decay": 1e-5,
}  # fmt: skip
DECOMFL_ON_MNIST = PublishedScores(
    DECOMFL.name,
    {20: (0.3122, 0.3379), 100: (0.8113, 0.8458), 200: (0.8754, 0.8955), 500: (0.8919, 0.9280),
     1000: (0.9146, 0.9442)},
)  # fmt: skip

PROBLEMS = {
    problem.name: problem
    for problem in (
        RaceTask("demo", "byte-level GPT on the standard library's modules, from its start",
                DEMO, 1200, DEMO_RATES, OWN),
        RaceTask("demo-base", "the same on one half of the modules, from an fo base of the other",
                {**DEMO, "data-part": "2/2"}, 1200,
                {name: rate / 4 for name, rate in DEMO_RATES.items()}, OWN,
                start={**DEMO, "data-part": "1/2", "mode": "fo", "learning-rate": 0.5,
                       "num-rounds": 150}),
        RaceTask("mnist", "DeComFL's network and setting: 100 clients, 10 a round, batch 256",
                {"task": "pictures", "dataset": "mnist-pixels", "model": mnist.NAME,
                 "block-size": 784, "num-clients": 100, "clients-per-round": 10,
                 "zo-batch-size": 256, "bp-batch-size": 256, "partitioner": "iid",
                 "eval-blocks": 2000},
                2100,
                {"mezo": 1e-3, "decomfl": 1e-3, "fedkseed": 1e-4, "fzoo": 5e-3, "fedavg": 1e-3,
                 TWO_POINT: 2e-2, FORWARD: 4e-2, "ours: own keys": 3.5e-3},
                {**OWN, **PICTURES_OWN},
                {DECOMFL.name: DECOMFL_SETTING},
                frozenset({FEDAVG_LORA.name}), carriers=("mnist",),
                published_scores=DECOMFL_ON_MNIST, install=mnist.register),
        RaceTask("minilm-head", "MiniLM on Rotten Tomatoes, its head alone",
                {**MINILM, "scope": "head", "block-size": 32}, 2000,
                {"mezo": 1e-3, "decomfl": 3e-3, "fedkseed": 1e-3, "fzoo": 1e-3, "fedavg": 2e-3,
                 "ours: adam, q = 64": 3e-3, TWO_POINT: 2e-2, FORWARD: 4e-2},
                {**OWN, "adam, q = 64": {"optimizer": "adam", "queries": 64, "step": "plain"}},
                without=frozenset({FEDAVG_LORA.name}), carriers=("rotten-tomatoes", "minilm")),
        RaceTask("minilm-readout", "MiniLM on Rotten Tomatoes, a linear readout of kept features",
                {**MINILM, "scope": "head", "features": "mean"}, 2000,
                {"mezo": 2e-2, "decomfl": 5e-2, "fedkseed": 2e-2, "fzoo": 5e-3, "fedavg": 1e-2,
                 TWO_POINT: 5e-2, FORWARD: 1e-1},
                OWN, without=frozenset({FEDAVG_LORA.name}),
                carriers=("rotten-tomatoes", "minilm")),
        RaceTask("minilm-bias", "MiniLM on Rotten Tomatoes, its biases, norms and output",
                {**MINILM, "scope": "bias", "block-size": 32}, 1000,
                {"mezo": 2e-3, "decomfl": 5e-3, "fedkseed": 1e-3, "fzoo": 1e-3, "fedavg": 1e-3,
                 TWO_POINT: 2e-2, FORWARD: 4e-2},
                OWN,
                without=frozenset({FEDAVG_LORA.name}), carriers=("rotten-tomatoes", "minilm")),
        RaceTask("smollm2", "SmolLM2-135M with a prompt on Rotten Tomatoes, IID", SMOLLM2, 300,
                SMOLLM2_RATES, {"words": WORDS},
                carriers=("rotten-tomatoes", "smollm2")),
        RaceTask("smollm2-skewed", "the same, classes dealt by Dirichlet 0.1",
                {**SMOLLM2, **SKEWED}, 300, SMOLLM2_RATES, {"words": WORDS},
                carriers=("rotten-tomatoes", "smollm2")),
    )
}  # fmt: skip


def problem_of(name: str) -> RaceTask:
    """A problem by its name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in PROBLEMS:
        raise UnknownNameError("problem", name, PROBLEMS)
    return PROBLEMS[name]
