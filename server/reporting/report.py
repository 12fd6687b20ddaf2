"""What a person reads of a run: CSV logs, summary, picture and model, all made from the ledger."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.ledger.ledger import Ledger
from server.reporting import data_distribution
from server.reporting.loss_plot import draw_losses
from server.rounds.after_commit import TOGETHER
from shared.config.schema import Config
from shared.models.model import LanguageModel
from shared.modes.mode import mode_of
from shared.replica.replica import Replica
from shared.replica.snapshot import write_atomically

METRICS_HEAD = (
    "timestamp",
    "round",
    "mode",
    "scope",
    "q",
    "lr",
    "batch size",
    "optimizer",
    "bp interval",
    "loss",
    "gradient norm",
    "evaluation loss",
    "bytes up",
    "bytes down",
    "forwards",
    "accuracy",
    "f1",
)
CLIENTS_HEAD = ("round", "site", "loss", "examples", "bytes up", "bytes down", "seconds", "refusal")
METRICS_QUERY = """
SELECT m.timestamp, m.round, m.learning_rate, m.loss, m.gradient_norm, e.loss, m.bytes_up,
       m.bytes_down, m.forwards,
       (SELECT value FROM scores s WHERE s.round = m.round AND s.site = '' AND s.name = 'accuracy'),
       (SELECT value FROM scores s WHERE s.round = m.round AND s.site = '' AND s.name = 'f1')
FROM metrics m LEFT JOIN evaluations e USING (round) WHERE m.round >= ? AND m.round <= ?
ORDER BY m.round"""
CLIENTS_QUERY = """
SELECT t.round, t.site, c.loss, c.examples,
       sum(t.payload * (t.direction = 'up')), sum(t.payload * (t.direction = 'down')), c.seconds,
       (SELECT group_concat(r.reason, '; ') FROM refusals r
        WHERE r.round = t.round AND r.site = t.site)
FROM traffic t LEFT JOIN contributions c ON c.round = t.round AND c.site = t.site
WHERE t.kind != 'control' AND t.round >= ? AND t.round <= ?
GROUP BY t.round, t.site ORDER BY t.round, c.slot, t.site"""


@dataclass(frozen=True)
class Totals:
    """Sums over the whole run so far."""

    bytes_up: int
    bytes_down: int
    seconds: float


class Report:
    """Writes the readable files of a run folder; the ledger has everything they say."""

    def __init__(self, folder: Path, ledger: Ledger, config: Config, replica: Replica) -> None:
        self.folder, self.ledger, self.config = folder, ledger, config
        self._replica = replica

    def rebuild(self) -> None:
        """Write both logs anew, up to the round before the last, which ``add`` follows."""
        to = self.ledger.last_round - 1
        self._write("metrics.csv", "w", [METRICS_HEAD, *self._metrics(0, to)])
        self._write("clients.csv", "w", [CLIENTS_HEAD, *self._clients(0, to)])

    def add(self, round_: int) -> None:
        """Append the rows of one round to both logs, where it is one of those that are logged."""
        if not self._logged(round_):
            return
        self._write("metrics.csv", "a", self._metrics(round_, round_))
        self._write("clients.csv", "a", self._clients(round_, round_))

    def totals(self) -> Totals:
        """Payload bytes and seconds of all rounds."""
        up, down, seconds = self.ledger.rows(
            "SELECT coalesce(sum(bytes_up), 0), coalesce(sum(bytes_down), 0), "
            "coalesce(sum(seconds), 0.0) FROM metrics"
        )[0]
        return Totals(up, down, seconds)

    def evaluations(self) -> list[tuple[int, float]]:
        """Round and loss of every evaluation."""
        return [
            (r, loss) for r, loss in self.ledger.rows("SELECT * FROM evaluations ORDER BY round")
        ]

    def scores(self, site: str = "") -> dict[str, list[tuple[int, float]]]:
        """Round and value of every score of a site (the server, if none is named), by name."""
        found: dict[str, list[tuple[int, float]]] = {}
        query = "SELECT name, round, value FROM scores WHERE site = ? ORDER BY name, round"
        for name, round_, value in self.ledger.rows(query, (site,)):
            found.setdefault(name, []).append((round_, value))
        return found

    def finish(self, model: LanguageModel) -> None:
        """Write summary and pictures, and the model where ``save-model`` says so."""
        text = json.dumps(self.summary(), indent=2, ensure_ascii=False)
        write_atomically(self.folder / "summary.json", text.encode())
        draw_losses(self.ledger, self.folder / "loss.png")
        if shards := data_distribution.read(self.folder):
            title = data_distribution.title_of(self.config)
            data_distribution.draw(shards, title, self.folder / data_distribution.PICTURE)
        if self.config.save_model:
            model.save(self.folder / "model")

    def summary(self) -> dict[str, Any]:
        """The run in some twenty numbers; bytes are means per client and round that was sent."""
        evaluations, config = self.evaluations(), self.config
        per_client = {
            f"{size}_bytes_{direction}_per_client_round": self._mean(size, direction)
            for size in ("payload", "message")
            for direction in ("up", "down")
        }
        refusals = dict(
            self.ledger.rows(
                "SELECT reason, count(*) FROM refusals GROUP BY reason ORDER BY reason"
            )
        )
        return {
            "mode": config.mode,
            "rounds": self.ledger.last_round,
            "parameters": self._replica.model.layout.parameters,
            "clients": self.ledger.rows("SELECT count(DISTINCT site) FROM contributions")[0][0],
            "queries": config.queries,
            "evaluation_loss_first": evaluations[0][1] if evaluations else None,
            "evaluation_loss_last": evaluations[-1][1] if evaluations else None,
            **{
                f"evaluation_{name}_{when}": values[place][1]
                for name, values in self.scores().items()
                for when, place in (("first", 0), ("last", -1))
            },
            **{
                f"sites_{name}_last": values[-1][1]
                for name, values in self.scores(TOGETHER).items()
            },
            "seconds": round(self.totals().seconds, 3),
            "digest": self._replica.digest().hex(),
            **per_client,
            "refused_replies": sum(refusals.values()),
            "refusals": refusals,
            "skipped_rounds": self.ledger.rows("SELECT count(*) FROM skips")[0][0],
            "rewinds": [[r.round, r.back_to, r.scale, r.reason] for r in self.ledger.rewinds()],
            "ledger_bytes": sum(len(p) for p in self.ledger.payloads(0, self.ledger.last_round)),
        }

    def _mean(self, size: str, direction: str) -> float:
        value = self.ledger.rows(
            f"SELECT avg(s) FROM (SELECT sum({size}) s FROM traffic "
            "WHERE direction = ? AND kind != 'control' GROUP BY round, site)",
            (direction,),
        )[0][0]
        return round(value or 0.0, 1)

    def _write(self, name: str, mode: str, rows: Iterable[Sequence[object]]) -> None:
        with (self.folder / name).open(mode, newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    def _metrics(self, first: int, last: int) -> list[list[object]]:
        c = self.config
        rows = self.ledger.rows(METRICS_QUERY, (first, last))
        settings = (c.mode, c.scope, c.queries)
        interval = c.bp_interval if mode_of(c).has_interval else 0
        return [
            _readable(
                [*row[:2], *settings, row[2], c.zo_batch_size, c.optimizer.name, interval, *row[3:]]
            )
            for row in rows
            if self._logged(row[1])
        ]

    def _clients(self, first: int, last: int) -> list[list[object]]:
        rows = self.ledger.rows(CLIENTS_QUERY, (max(first, 1), last))
        return [_readable(row) for row in rows if self._logged(row[0])]

    def _logged(self, round_: int) -> bool:
        last = round_ == self.config.training.rounds
        return last or round_ % self.config.run.log_interval == 0


def _readable(row: Iterable[object]) -> list[object]:
    """Numbers with as many digits as a float32 has."""
    return [float(f"{value:.8g}") if isinstance(value, float) else value for value in row]
