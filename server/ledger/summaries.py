"""Questions about a whole run that take sums or several tables: costs, sites, logged rounds."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from server.ledger.database import Database
from server.ledger.records import SERVER, Metrics
from shared.base.text import escape_text
from shared.protocol.transfers import Direction

SCORE = "(SELECT value FROM scores s WHERE s.round = {}.round AND s.site = ? AND s.name = '{}')"
SUM = "coalesce(sum(t.payload * (t.direction = '{}')), 0)"
SUMS_BY_DIRECTION = f"{SUM.format('up')}, {SUM.format('down')}"
COST_POINTS = f"""
SELECT e.round, e.loss,
  (SELECT coalesce(sum(payload), 0) FROM traffic t WHERE t.round <= e.round),
  (SELECT coalesce(sum(message), 0) FROM traffic t WHERE t.round <= e.round),
  (SELECT coalesce(sum(forwards), 0) FROM metrics m WHERE m.round <= e.round),
  (SELECT coalesce(sum(seconds), 0) FROM metrics m WHERE m.round <= e.round),
  {SCORE.format("e", "accuracy")}
FROM evaluations e WHERE e.round <= (SELECT coalesce(max(round), 0) FROM entries) ORDER BY e.round
"""
ROUND_SUMMARIES = f"""
SELECT e.loss, {SCORE.format("m", "accuracy")}, {SCORE.format("m", "f1")},
  {SCORE.format("m", "macro_f1")}, m.*
FROM metrics m LEFT JOIN evaluations e USING (round) WHERE m.round BETWEEN ? AND ?
ORDER BY m.round"""
SITE_ROUNDS = f"""
SELECT t.round, t.site, c.loss, c.examples, {SUMS_BY_DIRECTION}, c.seconds,
       (SELECT group_concat(r.reason, '; ') FROM refusals r
        WHERE r.round = t.round AND r.site = t.site)
FROM traffic t LEFT JOIN contributions c ON c.round = t.round AND c.site = t.site
WHERE t.kind != 'control' AND t.round BETWEEN ? AND ?
GROUP BY t.round, t.site ORDER BY t.round, c.slot, t.site"""
SITE_STATES = f"""
SELECT n.site, (SELECT s.device FROM sites s WHERE s.site = n.site),
       (SELECT max(c.round) FROM contributions c WHERE c.site = n.site),
       (SELECT c.loss FROM contributions c WHERE c.site = n.site ORDER BY c.round DESC LIMIT 1),
       (SELECT c.seconds FROM contributions c WHERE c.site = n.site ORDER BY c.round DESC LIMIT 1),
       {SUMS_BY_DIRECTION},
       (SELECT r.reason || ' in round ' || r.round || ': ' || r.detail FROM refusals r
        WHERE r.site = n.site ORDER BY r.id DESC LIMIT 1)
FROM (SELECT site FROM traffic UNION SELECT site FROM sites UNION SELECT site FROM refusals) n
LEFT JOIN traffic t USING (site) GROUP BY n.site ORDER BY n.site"""
NOT_FINITE = """
SELECT count(DISTINCT site) FROM refusals
WHERE round = ? AND (reason IN ('not finite', 'too large') OR detail LIKE '%finite%')"""
COHORT = """
SELECT count(DISTINCT site) FROM traffic
WHERE round = ? AND direction = 'down' AND kind != 'control'"""
MEAN_BYTES = """
SELECT avg(s) FROM (SELECT sum({}) s FROM traffic
WHERE direction = ? AND kind != 'control' GROUP BY round, site)"""
MEAN_NORM = """
SELECT avg(gradient_norm) FROM (SELECT gradient_norm FROM metrics WHERE clients > 0
ORDER BY round DESC LIMIT ?)"""


class Totals(NamedTuple):
    """Sums over all rounds and sites."""

    forwards: int
    bytes_up: int  # payload of rounds; introductions are not counted
    bytes_down: int
    seconds: float
    clients: int  # the most that contributed to one round; 0: none


class Traffic(NamedTuple):
    """Bytes that crossed the network, introductions and refused replies included."""

    payload: int  # as encoded by us
    message: int  # as serialised with Flower's envelope


class CostPoint(NamedTuple):
    """An evaluation, and what the run had cost up to it, summed over all sites."""

    round: int
    loss: float
    payload: int  # bytes
    message: int  # bytes
    forwards: int
    seconds: float
    accuracy: float | None  # if the task has classes


class RoundSummary(NamedTuple):
    """A round's metrics and, if it was evaluated, the server's held-out scores."""

    metrics: Metrics
    loss: float | None
    accuracy: float | None
    f1: float | None
    macro_f1: float | None


class SiteRound(NamedTuple):
    """What one site did in one round; None: it did not contribute."""

    round: int
    site: str
    loss: float | None
    examples: int | None
    bytes_up: int
    bytes_down: int
    seconds: float | None
    refusals: str | None  # reasons, joined by "; "


class SiteState(NamedTuple):
    """What a ledger says of one site now."""

    site: str
    device: str | None  # None: it was never accepted
    round: int | None  # the last that it contributed to, with loss and seconds of that
    loss: float | None
    seconds: float | None
    bytes_up: int
    bytes_down: int
    error: str | None  # its last refusal


class RunSummaries:
    """The part of ``LedgerReader`` that adds up rows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def totals(self) -> Totals:
        """Forward passes, payload bytes and seconds of all rounds."""
        query = (
            "SELECT coalesce(sum(forwards), 0), coalesce(sum(bytes_up), 0), "
            "coalesce(sum(bytes_down), 0), coalesce(sum(seconds), 0.0), coalesce(max(clients), 0) "
            "FROM metrics"
        )
        return Totals(*self._rows(query)[0])

    def traffic_totals(self, direction: Direction | None = None) -> Traffic:
        """All bytes of one direction, or of both."""
        query = "SELECT coalesce(sum(payload), 0), coalesce(sum(message), 0) FROM traffic"
        if direction is None:
            return Traffic(*self._rows(query)[0])
        return Traffic(*self._rows(f"{query} WHERE direction = ?", direction)[0])

    def payload_bytes(self, round_: int, direction: Direction) -> int:
        """Payload bytes of a round so far, with those of attempts that were skipped."""
        query = "SELECT coalesce(sum(payload), 0) FROM traffic WHERE round = ? AND direction = ?"
        return int(self._value(query, round_, direction))

    def mean_bytes(self, direction: Direction) -> tuple[float, float]:
        """Mean payload and mean message bytes per site and round in which it had any."""
        payload, message = (
            self._value(MEAN_BYTES.format(size), direction) for size in ("payload", "message")
        )
        return payload or 0.0, message or 0.0

    def entry_bytes(self) -> int:
        """Size of all encoded entries."""
        return int(self._value("SELECT coalesce(sum(length(payload)), 0) FROM entries"))

    def mean_gradient_norm(self, rounds: int) -> float | None:
        """Mean over the newest ``rounds`` rounds that took a step; None if there are none."""
        return None if (mean := self._value(MEAN_NORM, rounds)) is None else float(mean)

    def count_contributors(self) -> int:
        """Sites that contributed to any round."""
        return int(self._value("SELECT count(DISTINCT site) FROM contributions"))

    def count_contributions(self) -> dict[str, int]:
        """The number of rounds that each site contributed to, by its name."""
        query = "SELECT site, count(*) FROM contributions GROUP BY site ORDER BY site"
        return dict(self._rows(query))

    def count_cohort(self, round_: int) -> int:
        """Sites that were sent a request of a round."""
        return int(self._value(COHORT, round_))

    def count_not_finite(self, round_: int) -> int:
        """Sites whose replies of a round were refused because their numbers were not finite."""
        return int(self._value(NOT_FINITE, round_))

    def count_skips(self, round_: int | None = None) -> int:
        """Attempts at a round, or at all rounds, that had too few valid replies."""
        if round_ is None:
            return int(self._value("SELECT count(*) FROM skips"))
        return int(self._value("SELECT count(*) FROM skips WHERE round = ?", round_))

    def count_refusals(self) -> dict[str, int]:
        """Refused replies by their reason."""
        query = "SELECT reason, count(*) FROM refusals GROUP BY reason ORDER BY reason"
        return dict(self._rows(query))

    def cost_points(self) -> list[CostPoint]:
        """Every evaluation with its costs, in order."""
        return [CostPoint(*row) for row in self._rows(COST_POINTS, SERVER)]

    def round_summaries(self, first: int, last: int) -> list[RoundSummary]:
        """The rounds ``first`` to ``last``, both included."""
        rows = self._rows(ROUND_SUMMARIES, SERVER, SERVER, SERVER, first, last)
        return [RoundSummary(Metrics(*row[4:]), *row[:4]) for row in rows]

    def site_rounds(self, first: int, last: int) -> list[SiteRound]:
        """Every site's part in the rounds ``first`` to ``last``, by round and slot."""
        return [SiteRound(*row) for row in self._rows(SITE_ROUNDS, first, last)]

    def site_states(self) -> list[SiteState]:
        """Every site that was met, asked or refused, by name."""
        return [SiteState(*row) for row in self._rows(SITE_STATES)]

    def _rows(self, query: str, *parameters: object) -> Sequence[tuple[Any, ...]]:
        """Rows whose texts are printable: some of them were sent by sites."""
        return [
            tuple(escape_text(value) if isinstance(value, str) else value for value in row)
            for row in self._database.rows(query, parameters)
        ]

    def _value(self, query: str, *parameters: object) -> Any:  # noqa: ANN401
        return self._rows(query, *parameters)[0][0]
