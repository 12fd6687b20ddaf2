"""A run's ledger tells which texts were in it: the attack on a real run of this product.

Whoever holds the ledger replays the model to each round, computes what a text alone would have
sent, and takes the likelihood ratio. Without privacy the rows of a batch follow from public seeds,
so a text is compared with the one batch that it would have been in.
"""

from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.privacy.example_differences import example_differences
from dandelion.engines.local import run_local
from dandelion.privacy.attacks.membership import LikelihoodRatio, Members, clip_each
from dandelion.privacy.attacks.protection import Array
from server.ledger.reader import LedgerReader
from server.ledger.run_folder import LEDGER
from shared.config.schema import Config
from shared.modes.batches import query_rows
from shared.privacy.accounting import noise_for, rate_bits_of
from shared.protocol.site_id import site_of
from shared.randomness.streams import SHARED_SLOT, direction_keys
from shared.training.corpus import Corpus
from shared.training.oracle import EVALUATION_BATCH, Oracle


@dataclass(frozen=True)
class LedgerAttack:
    """An attacker with a run's ledger, the texts in question, and texts of its own.

    A third of the held-out texts are the foreign ones, the others are the attacker's own.

    Attributes:
        folder: of the run.
        config: of the run, which the ledger has too.
        site: number of the attacked site.
        most: texts of a private site in question at most, and as many foreign ones.
    """

    folder: Path
    config: Config
    site: int = 0
    most: int = 40

    def attack(self) -> Members:
        """The scores of texts that the site has drawn, or that it has, and of foreign ones."""
        inside: list[Array] = []
        outside: list[Array] = []
        oracle = Oracle.of(self.config)
        with closing(LedgerReader.open(self.folder / LEDGER)) as ledger:
            for round_ in range(1, ledger.last_round + 1):
                sent = ledger.site_numbers(round_)[self._slot].differences.astype(float)
                members, others = self._score(oracle, round_, sent)
                inside.append(members)
                outside.append(others)
                oracle.replica.apply([ledger.entry(round_)])
        if self._is_private:  # nobody knows the rows: every round may have had every text
            return Members(np.sum(inside, 0), np.sum(outside, 0))
        return Members(np.concatenate(inside), np.concatenate(outside))

    def _score(self, oracle: Oracle, round_: int, sent: Array) -> tuple[Array, Array]:
        """The scores of one round's candidates: the site's own, and foreign ones."""
        c, texts = self.config, self._texts
        rows, first = np.arange(min(self.most, len(texts.inside), len(texts.foreign))), 0
        if not self._is_private:
            rows = query_rows(c, self._slot, round_, 0, len(texts.inside))
            first = (round_ - 1) * len(rows) % (len(texts.foreign) - len(rows) + 1)
        parts = texts.inside[rows], texts.foreign[first : first + len(rows)], texts.own
        members, others, known = (self._numbers(oracle, part, round_) for part in parts)
        noise = 0.0
        if self._is_private:
            clip = c.privacy.clip_of_differences(c.zo.eps, c.zo.queries)
            members, others, known = (clip_each(part, clip) for part in (members, others, known))
            noise = self._noise * clip / c.zo.batch_size
        test = LikelihoodRatio(known, c.zo.batch_size, noise)
        return test.scores(sent, members), test.scores(sent, others)

    def _numbers(self, oracle: Oracle, texts: NDArray[np.int64], round_: int) -> Array:
        """What texts (n, T) alone would have sent in a round (q, n)."""
        c = self.config
        keys = direction_keys(c.training.seed, round_, SHARED_SLOT, 0, c.zo.queries)
        return np.concatenate(
            [
                example_differences(oracle, c, part, keys)
                for part in torch.split(torch.from_numpy(texts), EVALUATION_BATCH)
            ],
            axis=1,
        )

    @property
    def _is_private(self) -> bool:
        return self.config.privacy.is_local

    @property
    def _slot(self) -> int:
        return site_of({"partition-id": self.site}).slot

    @cached_property
    def _noise(self) -> float:
        """The site's noise in clips, which is no secret."""
        c, units = self.config, len(self._texts.inside)
        bits = rate_bits_of(c.zo.batch_size, units)
        return c.privacy.noise or noise_for(
            c.privacy.epsilon, c.privacy.delta, c.training.rounds, bits
        )

    @cached_property
    def _texts(self) -> "Texts":
        corpus = Corpus.of(self.config, Oracle.of(self.config).language_model)
        shard = corpus.shard(self.site, self.config.federation.num_clients)
        others = corpus.held_out.batch(np.arange(len(corpus.held_out)))
        third = len(others) // 3
        return Texts(shard.batch(np.arange(len(shard))), others[:third], others[third:])


@dataclass(frozen=True)
class Texts:
    """Blocks of tokens (n, T): the site's, foreign ones in question, and the attacker's own."""

    inside: NDArray[np.int64]
    foreign: NDArray[np.int64]
    own: NDArray[np.int64]


def attack_run(config: Config) -> Members:
    """Train a run in the local engine, and attack its ledger."""
    return LedgerAttack(run_local(config), config).attack()
