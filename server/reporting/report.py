"""The readable files of a run: CSV logs, summary, pictures and model, all made from the ledger."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from server.ledger.reader import LedgerReader
from server.ledger.records import ALL_SITES, SERVER
from server.reporting import data_distribution
from server.reporting.class_choices import ClassChoices
from server.reporting.loss_plot import draw_losses
from server.reporting.round_worth import verdict_of, worth_of_round, worth_of_run
from shared.base.files import write_atomically
from shared.base.text import spreadsheet_cell
from shared.config.schema import Config
from shared.models.model import LanguageModel
from shared.modes.mode import mode_of
from shared.replica.replica import Replica
from shared.tasks.classification import CLASSIFICATION, label_words

MODEL = "model"  # the folder of the trained model, in a run's folder
METRICS_COLUMNS = (
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
    "signal",
    "signal error",
    "site noise",
    "site noise error",
    "macro f1",
)
CLASS_SCORES = {"accuracy", "f1", "macro_f1"}  # have columns in every run, empty without classes
CLIENTS_COLUMNS = (
    "round",
    "site",
    "loss",
    "examples",
    "bytes up",
    "bytes down",
    "seconds",
    "refusal",
)


class Report:
    """Writes the readable files of a run folder; it can be repeated from the ledger at any time."""

    def __init__(
        self,
        folder: Path,
        ledger: LedgerReader,
        config: Config,
        replica: Replica,
        scores: Iterable[str] = (),
    ) -> None:
        """``scores`` are the names of those that the task has of its own, one column for each."""
        self.folder, self.ledger, self.config = folder, ledger, config
        self._replica = replica
        self._scores_by_column = {
            f"{name} score" if name in METRICS_COLUMNS else name: name
            for name in scores
            if name not in CLASS_SCORES
        }

    def rebuild(self) -> None:
        """Write both logs anew, up to the round before the last; ``add`` appends that one again."""
        to = self.ledger.last_round - 1
        self._write("metrics.csv", "w", [self.columns, *self._metrics(0, to)])
        self._write("clients.csv", "w", [CLIENTS_COLUMNS, *self._clients(0, to)])

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of ``metrics.csv``."""
        return (*METRICS_COLUMNS, *self._scores_by_column)

    def add(self, round_: int) -> None:
        """Append the rows of one round to both logs, if ``log-interval`` logs it."""
        if not self._is_logged(round_):
            return
        self._write("metrics.csv", "a", self._metrics(round_, round_))
        self._write("clients.csv", "a", self._clients(round_, round_))

    def finish(self, model: LanguageModel) -> None:
        """Write summary and pictures, and the model if ``save-model`` is set."""
        text = json.dumps(self.summary(), indent=2, ensure_ascii=False)
        write_atomically(self.folder / "summary.json", text.encode())
        draw_losses(self.ledger, self.folder / "loss.png")
        if shards := data_distribution.read(self.folder):
            title = data_distribution.title_of(self.config.data, self.config.model.app)
            data_distribution.draw(shards, title, self.folder / data_distribution.SHARDS_PNG)
        if (choices := self._choices()) is not None:
            choices.write(self.folder)
            choices.draw(self.folder)
        if self.config.run.save_model:
            model.save(self.folder / MODEL)

    def summary(self) -> dict[str, Any]:
        """The run in some twenty numbers; bytes are means over sites and rounds with traffic."""
        evaluations, config, ledger = self.ledger.evaluations(), self.config, self.ledger
        refusals = ledger.count_refusals()
        return {
            "mode": config.training.mode,
            "rounds": ledger.last_round,
            "parameters": self._replica.model.layout.parameters,
            "clients": ledger.count_contributors(),
            "queries": config.zo.queries,
            "evaluation_loss_first": evaluations[0].loss if evaluations else None,
            "evaluation_loss_last": evaluations[-1].loss if evaluations else None,
            **self._scores(),
            **(choices.summary() if (choices := self._choices()) else {}),
            "seconds": round(ledger.totals().seconds, 3),
            "digest": self._replica.digest().hex(),
            **self._bytes(),
            "refused_replies": sum(refusals.values()),
            "refusals": refusals,
            "skipped_rounds": ledger.count_skips(),
            "rewinds": [[r.round, r.back_to, r.scale, r.reason] for r in ledger.rewinds()],
            "ledger_bytes": ledger.entry_bytes(),
            **self._verdict(),
        }

    def _scores(self) -> dict[str, float]:
        """The server's first and last scores, and the last ones of all sites together."""
        scores: dict[str, float] = {}
        for name, series in self.ledger.scores(SERVER).items():
            scores[f"evaluation_{name}_first"] = series[0][1]
            scores[f"evaluation_{name}_last"] = series[-1][1]
        together = self.ledger.scores(ALL_SITES).items()
        return scores | {f"sites_{name}_last": series[-1][1] for name, series in together}

    def _choices(self) -> ClassChoices | None:
        """What the last evaluation chose for the examples of each class; None without classes."""
        if self.config.data.task != CLASSIFICATION:
            return None
        names = label_words(self.config.data)
        confusion = self.ledger.choices(len(names))
        return None if confusion is None else ClassChoices(names, confusion)

    def _bytes(self) -> dict[str, float]:
        """Mean bytes per client and round, as payload and as messages, both directions."""
        up, down = self.ledger.mean_bytes("up"), self.ledger.mean_bytes("down")
        means = {"payload": (up[0], down[0]), "message": (up[1], down[1])}
        return {
            f"{size}_bytes_{direction}_per_client_round": round(mean, 1)
            for size, both in means.items()
            for direction, mean in zip(("up", "down"), both, strict=True)
        }

    def _write(self, name: str, mode: str, rows: Iterable[Sequence[object]]) -> None:
        with (self.folder / name).open(mode, newline="", encoding="utf-8") as file:
            cells = ([spreadsheet_cell(value) for value in row] for row in rows)
            csv.writer(file, lineterminator="\n").writerows(cells)

    def _metrics(self, first: int, last: int) -> list[list[object]]:
        c = self.config
        settings = (c.training.mode, c.model.scope, c.zo.queries)
        interval = c.bp.interval if mode_of(c).has_interval else 0
        batch = (c.zo.batch_size, c.optimizer.name, interval)
        scores, named = self.ledger.scores_of_rounds(first, last), self._scores_by_column.values()
        return [
            _round_numbers(
                [
                    *(m.timestamp, m.round, *settings, m.learning_rate, *batch, m.loss),
                    *(m.gradient_norm, loss, m.bytes_up, m.bytes_down, m.forwards, accuracy, f1),
                    *self._worth(m.round),
                    macro_f1,
                    *(scores.get(m.round, {}).get(name) for name in named),
                ]
            )
            for m, loss, accuracy, f1, macro_f1 in self.ledger.round_summaries(first, last)
            if self._is_logged(m.round)
        ]

    def _worth(self, round_: int) -> tuple[float | None, ...]:
        """Signal and noise of a round, each with its error; None if sites cannot be compared."""
        worth = worth_of_round(self.config, self.ledger, round_)
        if worth is None:
            return (None,) * 4
        return worth.signal, worth.signal_error, worth.noise, worth.noise_error

    def _verdict(self) -> dict[str, Any]:
        """Signal and noise of the newest rounds, and in words what limits them."""
        worth = worth_of_run(self.config, self.ledger)
        if worth is None:
            return {}
        return {
            "signal": worth.signal,
            "signal_error": worth.signal_error,
            "site_noise": worth.noise,
            "site_noise_error": worth.noise_error,
            "verdict": verdict_of(worth, self.config),
        }

    def _clients(self, first: int, last: int) -> list[list[object]]:
        rows = self.ledger.site_rounds(max(first, 1), last)
        return [_round_numbers(row) for row in rows if self._is_logged(row.round)]

    def _is_logged(self, round_: int) -> bool:
        return round_ % self.config.run.log_interval == 0 or round_ == self.config.training.rounds


def _round_numbers(row: Iterable[object]) -> list[object]:
    """The row with as many digits in each number as a float32 has."""
    return [float(f"{value:.8g}") if isinstance(value, float) else value for value in row]
