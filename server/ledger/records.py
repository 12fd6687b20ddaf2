"""The tables of a ledger file, and the records that are their rows."""

import math
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.base.metrics import EvalSums
from shared.protocol.sealed_messages import Sealed

VERSION = 6  # of new ledgers: with sealed sums, and the lengths of gradients
OLDEST = 3  # that can be read: without ``comparisons``, ``cohorts``, ``sums`` and ``lengths``

TABLES = """
CREATE TABLE head (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
    round INTEGER PRIMARY KEY,      -- 1, 2, 3 … without a gap
    payload BLOB NOT NULL,          -- the encoded entry: what every replica applies
    chain BLOB NOT NULL             -- sha256 of the chain before, the payload, the contributions
);
CREATE TABLE contributions (        -- who measured what: an entry can be recomputed from these
    round INTEGER NOT NULL, slot INTEGER NOT NULL, site TEXT NOT NULL,
    examples INTEGER NOT NULL,
    loss REAL,                      -- null if sites send none
    seconds REAL NOT NULL,
    differences BLOB NOT NULL,      -- float32, as the site sent them
    gradient BLOB NOT NULL,         -- SHA-256 of an encoded gradient that came with them, or empty
    PRIMARY KEY (round, slot)
) WITHOUT ROWID;
CREATE TABLE comparisons (          -- losses of one batch at two rounds' parameters: step = auto
    round INTEGER NOT NULL, slot INTEGER NOT NULL,
    before REAL,                    -- of the batch of the step that followed
    after REAL,                     -- of the batch of the step before, null if not requested
    PRIMARY KEY (round, slot)
) WITHOUT ROWID;
CREATE TABLE lengths (              -- of the gradients that sites sent, under the mean
    round INTEGER NOT NULL, slot INTEGER NOT NULL, length REAL NOT NULL,
    PRIMARY KEY (round, slot)
) WITHOUT ROWID;
CREATE TABLE cohorts (              -- whose sealed numbers are added up, written before the sums
    round INTEGER NOT NULL, attempt INTEGER NOT NULL, slot INTEGER NOT NULL, site TEXT NOT NULL,
    part INTEGER NOT NULL,          -- of privacy-parts, each with a sum of its own
    request BLOB NOT NULL,          -- the site's own name of its answer
    PRIMARY KEY (round, attempt, slot)
) WITHOUT ROWID;
CREATE TABLE sums (                 -- what members of a committee sent, wrong ones too
    round INTEGER NOT NULL, attempt INTEGER NOT NULL, member INTEGER NOT NULL,
    needed INTEGER NOT NULL,        -- so many right ones give the sum
    "values" BLOB NOT NULL,         -- parts x queries x u64, modulo 2^61 - 1
    PRIMARY KEY (round, attempt, member)
) WITHOUT ROWID;
CREATE TABLE digests (round INTEGER PRIMARY KEY, digest BLOB NOT NULL);
CREATE TABLE refusals (
    id INTEGER PRIMARY KEY, round INTEGER NOT NULL, site TEXT NOT NULL,
    reason TEXT NOT NULL, detail TEXT NOT NULL
);
CREATE INDEX refusals_round ON refusals (round);
CREATE TABLE skips (id INTEGER PRIMARY KEY, round INTEGER NOT NULL, detail TEXT NOT NULL);
CREATE TABLE rewinds (              -- what entries of that kind say, and why
    round INTEGER PRIMARY KEY, back_to INTEGER NOT NULL, scale REAL NOT NULL, reason TEXT NOT NULL
);
CREATE TABLE traffic (
    id INTEGER PRIMARY KEY, round INTEGER NOT NULL, site TEXT NOT NULL, direction TEXT NOT NULL,
    kind TEXT NOT NULL, payload INTEGER NOT NULL, message INTEGER NOT NULL
);
CREATE INDEX traffic_round ON traffic (round);
CREATE TABLE metrics (
    round INTEGER PRIMARY KEY, timestamp TEXT NOT NULL, loss REAL,
    gradient_norm REAL NOT NULL, learning_rate REAL NOT NULL, clients INTEGER NOT NULL,
    forwards INTEGER NOT NULL, bytes_up INTEGER NOT NULL, bytes_down INTEGER NOT NULL,
    seconds REAL NOT NULL
);
CREATE TABLE sites (                -- each site, as it introduced itself last
    site TEXT PRIMARY KEY, slot INTEGER NOT NULL, device TEXT NOT NULL, dtype TEXT NOT NULL,
    threads INTEGER NOT NULL, examples INTEGER NOT NULL
);
CREATE TABLE evaluations (round INTEGER PRIMARY KEY, loss REAL NOT NULL);
CREATE TABLE scores (               -- of a task with classes: accuracy, f1, of a site also loss
    round INTEGER NOT NULL, site TEXT NOT NULL,                 -- or SERVER, or ALL_SITES
    name TEXT NOT NULL, value REAL NOT NULL,
    PRIMARY KEY (round, site, name)
) WITHOUT ROWID;
CREATE TABLE snapshots (
    round INTEGER PRIMARY KEY, file TEXT NOT NULL, bytes INTEGER NOT NULL,
    digest BLOB NOT NULL            -- XXH3-128 of the file
);
"""

# what stands in ``scores.site`` if the scores are those of no single site
SERVER = ""  # of the server's held-out examples
ALL_SITES = "all sites"  # of all sites' held-out examples together
CHOICES = "choices"  # no scores: how often the server's examples of a class got each choice

LEFT_OUT = "left out"  # reason of the refusals of a site that the run does without from then on


@dataclass(frozen=True)
class Contribution:
    """One site's valid reply, as a round was made from it."""

    round: int
    slot: int
    site: str
    examples: int
    loss: float | None  # None: not sent
    seconds: float
    differences: NDArray[np.floating[Any]]  # (K*q,) float32, as the site sent them
    gradient: bytes = b""  # as the site encoded it; the ledger keeps its digest
    outcome: EvalSums | None = None  # on the site's own held-out examples, if it evaluated
    before: float | None = None  # loss of the batch of the step that comes next
    after: float | None = None  # loss of the batch of the step that was taken last
    length: float | None = None  # of the gradient; None: none was sent, or none was compared
    sealed: Sealed | None = None  # its numbers, if only a sum of them can be opened
    can_backpropagate: bool = True  # the site; an exact slope costs it less then

    def order(self) -> tuple[object, ...]:
        """A key that sorts contributions by slot, and those of one slot by all their values."""
        numbers = (
            self.differences.tobytes(),
            self.gradient,
            self.sealed.request if self.sealed else b"",
        )
        losses = [math.nan if x is None else x for x in (self.loss, self.before, self.after)]
        return (self.slot, *numbers, self.examples, self.seconds, *losses)

    def row(self) -> tuple[object, ...]:
        """The row of the table ``contributions``; it has the digest of a gradient."""
        values = np.asarray(self.differences, "<f4").tobytes()
        gradient = sha256(self.gradient).digest() if self.gradient else b""
        about = self.round, self.slot, self.site, self.examples
        loss = None if self.loss is None else float(self.loss)
        return (*about, loss, float(self.seconds), values, gradient)

    def comparison(self) -> tuple[object, ...] | None:
        """The row of the table ``comparisons``; None if no batch was compared."""
        if self.before is None and self.after is None:
            return None
        losses = (None if x is None else float(x) for x in (self.before, self.after))
        return (self.round, self.slot, *losses)

    def length_row(self) -> tuple[object, ...] | None:
        """The row of the table ``lengths``; None if no gradient was compared with others."""
        return None if self.length is None else (self.round, self.slot, float(self.length))


@dataclass(frozen=True)
class Refusal:
    """A reply that was not used or did not arrive."""

    round: int
    site: str
    reason: str  # one of a few words that are counted
    detail: str


@dataclass(frozen=True)
class Rewind:
    """A round in which the run went back to an earlier one."""

    round: int
    back_to: int  # 0: the base model
    scale: float  # all learning rates of later rounds are multiplied by it
    reason: str


@dataclass(frozen=True)
class Metrics:
    """What a round did; its evaluation follows later, when the entry is applied."""

    round: int
    timestamp: str  # ISO 8601, UTC
    loss: float | None  # of the sites, weighted by examples; None: they send none
    gradient_norm: float  # root mean square of the projected gradients: estimates |gradient|
    learning_rate: float
    clients: int
    forwards: int  # forward passes of all sites
    bytes_up: int  # payload
    bytes_down: int
    seconds: float


class CohortRow(NamedTuple):
    """A site whose sealed numbers are in the sum of an attempt at a round."""

    round: int
    attempt: int
    slot: int
    site: str
    part: int
    request: bytes  # 32


class SumRow(NamedTuple):
    """The sums that one member of a committee sent."""

    round: int
    attempt: int
    member: int  # slot
    needed: int
    values: bytes  # parts * queries little-endian u64


class SiteNumbers(NamedTuple):
    """What the ledger keeps of one site's measurement."""

    examples: int
    differences: NDArray[np.float32]  # (K*q,) as the site sent them
    before: float | None
    after: float | None


class Evaluation(NamedTuple):
    """The server's held-out loss after a round."""

    round: int  # 0: the untrained model
    loss: float  # nats; infinite if it was NaN


class RecordedSite(NamedTuple):
    """A site as it introduced itself last."""

    site: str
    slot: int
    device: str
    examples: int


class SnapshotRow(NamedTuple):
    """A snapshot file, and what its bytes must be."""

    round: int
    size: int  # bytes
    file: str  # its name in the folder of snapshots
    digest: bytes  # XXH3-128
