"""Opens the ledger of a run folder, verifies it, and rebuilds the model of any round."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.ledger.reader import LedgerReader
from shared.base.errors import ConfigError
from shared.base.files import write_atomically

if TYPE_CHECKING:  # torch takes a second, and ``--help`` needs none of it
    from torch import Tensor

    from shared.models.model import LanguageModel
    from shared.training.oracle import Oracle

RoundDigest = tuple[int, bytes]
Follow = Callable[[Iterable[RoundDigest], int], Iterable[RoundDigest]]


@dataclass(frozen=True)
class Verification:
    """What a verified ledger was checked for; a ledger that does not hold raises an error.

    Attributes:
        rounds: how many rounds were replayed.
        digests: how many recorded digests were compared; all of them are equal.
        digest: of the parameters after the last round, as 32 hexadecimal digits.
        rates: how many learning rates were computed anew from the rounds before.
        sums: how many rounds' numbers were made anew from sealed sums.
        unrecorded: the rounds of which no digest was recorded.
        bridged: how many rounds were bridged by a snapshot, because gradients were dropped.
        dropped: the newest round whose gradient was dropped; 0 if none was.
    """

    rounds: int
    digests: int
    digest: str
    rates: int = 0
    sums: int = 0
    unrecorded: tuple[int, ...] = ()
    bridged: int = 0
    dropped: int = 0

    def lines(self) -> list[str]:
        """The result in sentences."""
        lines = [
            f"{self.rounds:,} rounds replayed, {self.digests:,} digests equal; digest {self.digest}"
        ]
        if self.rates:
            lines.append(f"{self.rates:,} learning rates follow from the rounds before")
        if self.sums:
            lines.append(f"{self.sums:,} rounds follow from the sums of their committees")
        if missing := self.unrecorded:
            lines.append(f"no digest is recorded of {len(missing):,} rounds: {_ranges(missing)}")
        if self.bridged:
            lines.append(
                f"{self.bridged:,} rounds were not replayed but bridged by snapshots: gradients up "
                f"to round {self.dropped} were dropped after a later snapshot was written"
            )
        return lines


@dataclass(frozen=True)
class ReplayedModel:
    """A model as it was after a round.

    Attributes:
        round: 0 is the model that the run started from.
        digest: of the trained parameters, as 32 hexadecimal digits.
        module: the ``torch.nn.Module``, in evaluation mode.
        tokenizer: text to tokens and back: ``encode``, ``decode``.
        card: the text of its model card, in Markdown.
    """

    round: int
    digest: str
    module: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    _oracle: "Oracle" = field(repr=False)
    card: str = field(repr=False)

    @property
    def parameters(self) -> "dict[str, Tensor]":
        """The trained parameters by name, in the order of the flat vector θ."""
        model = self._oracle.replica.model
        named = dict(model.module.named_parameters())
        return {span.name: named[span.name].detach() for span in model.layout.tensors}

    @property
    def language_model(self) -> "LanguageModel":
        """Module and tokenizer together, with what merges adapters."""
        return self._oracle.language_model

    def save(self, folder: str | Path) -> Path:
        """Write a folder that transformers' ``Auto…`` classes load; return its absolute path.

        Its ``README.md`` is the model's card: data, settings, digest, and how to make it again.
        """
        from server.pages.model_card import CARD

        self.language_model.save(path := Path(folder).expanduser().resolve())
        write_atomically(path / CARD, self.card.encode())
        return path


@contextmanager
def ledger_of(run: Path) -> Iterator[LedgerReader]:
    """Open the ledger of a run folder, and check it.

    Raises:
        LedgerError: there is no ledger, or it is damaged.
    """
    from server.ledger.run_folder import LEDGER

    with closing(LedgerReader.open(run / LEDGER)) as ledger:
        yield ledger


def base_oracle(ledger: LedgerReader) -> "Oracle":
    """Rebuild the oracle with the untrained model that a run started from.

    The module of a problem of one's own is looked for where the run found it, then here.

    Raises:
        DivergedError: the run's settings give another model on this machine.
    """
    from server.ledger.run_folder import check_base, read_config
    from shared.problem.source import use_folder
    from shared.training.oracle import Oracle

    config = read_config(ledger)
    if config.model.app:
        use_folder(config.run.app_dir)
        use_folder(str(Path.cwd()))
    oracle = Oracle.of(config)
    check_base(ledger, oracle)
    return oracle


def verify_ledger(
    ledger: LedgerReader, follow: Follow = lambda rounds, last: rounds
) -> Verification:
    """Rebuild every round from base model and ledger, and compare every recorded digest.

    Args:
        ledger: of the run.
        follow: passes the rounds on, and may show how far they are; gets the last round too.

    Raises:
        DivergedError: a digest, or a learning rate, is not the recorded one.
    """
    from server.aggregation.combine import Combiner
    from server.ledger.lineage import newest_dropped
    from server.ledger.run_folder import read_config
    from server.ledger.snapshots import rebuild_each_
    from server.sealed.audit import verify_sums
    from server.steps.learning_rates import LearningRates
    from shared.replica.replica import check_digest

    replica, last = base_oracle(ledger).replica, ledger.last_round
    replayed: list[int] = []
    unrecorded: list[int] = []
    rounds = itertools.chain([(0, replica.digest())], rebuild_each_(replica, ledger, last))
    for round_, digest in follow(rounds, last):
        recorded = ledger.digest(round_)
        check_digest(round_, digest, recorded)
        unrecorded += [round_] if recorded is None else []
        replayed.append(round_)
    config = read_config(ledger)
    rates = LearningRates(config, ledger, replica.model.layout.parameters).verify()
    return Verification(
        rounds=len(replayed) - 1,
        digests=len(replayed) - len(unrecorded),
        digest=replica.digest().hex(),
        rates=rates,
        sums=verify_sums(ledger, Combiner(config, replica)),
        unrecorded=tuple(unrecorded),
        bridged=last + 1 - len(replayed),
        dropped=newest_dropped(ledger.payloads(0, last)) or 0,
    )


def replay_ledger(ledger: LedgerReader, round_: int) -> ReplayedModel:
    """Rebuild the model after a round from base model and ledger, and compare its digest.

    Raises:
        ConfigError: there is no such round.
        DivergedError: the digest is not the recorded one.
        GapError: gradients of earlier rounds were dropped; says which rounds can be rebuilt.
    """
    from server.ledger.run_folder import read_config
    from server.ledger.snapshots import rebuild_
    from server.pages.model_card import model_card

    if not 0 <= round_ <= ledger.last_round:
        raise ConfigError(f"round: 0 to {ledger.last_round} expected, got {round_}")
    oracle = base_oracle(ledger)
    rebuild_(oracle.replica, ledger, round_)
    if (digest := ledger.digest(round_)) is not None:
        oracle.replica.check(digest)
    model = oracle.language_model
    name = oracle.replica.digest().hex()
    card = model_card(ledger.path.parent, ledger, read_config(ledger), round_)
    module = model.in_transformers().module
    return ReplayedModel(round_, name, module, model.tokenizer, oracle, card)


def _ranges(rounds: Iterable[int]) -> str:
    """Ascending numbers in words, as ``3, 7 to 9``."""
    there = set(rounds)
    starts = sorted(k for k in there if k - 1 not in there)
    ends = sorted(k for k in there if k + 1 not in there)
    pairs = zip(starts, ends, strict=True)
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in pairs)
