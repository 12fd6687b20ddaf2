"""A run that has been trained: its numbers as tables, its model, and the proof of it."""

import json
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dandelion.api.given import plain_torch
from dandelion.api.ledgers import (
    ReplayedModel,
    Verification,
    ledger_of,
    replay_ledger,
    verify_ledger,
)
from dandelion.monitor.progress import summary_sections
from shared.base.errors import ConfigError

if TYPE_CHECKING:  # ``import dandelion`` takes none of these
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from shared.config.schema import Config

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Run:
    """A run folder, read: ``dandelion.run``, ``resume`` and ``load_run`` return one.

    Every number comes from the ledger in the folder, so a run that still trains can be read too.

    Attributes:
        folder: absolute path of the run folder.

    Example:
        >>> run = dandelion.run(name="read", num_rounds=2, num_clients=2, queries=2,
        ...                     max_samples=20, eval_blocks=4, progress=False)
        >>> run.folder.name, run.rounds, run.config.zo.queries
        ('read', 2, 2)
        >>> list(run.metrics["round"]), list(run.evaluations["round"])
        ([1, 2], [0, 2])
    """

    folder: Path

    @property
    def config(self) -> "Config":
        """The settings that the run was started with."""
        from server.ledger.run_folder import read_config

        with ledger_of(self.folder) as ledger:
            return read_config(ledger)

    @property
    def rounds(self) -> int:
        """The number of the newest round; 0 before the first."""
        with ledger_of(self.folder) as ledger:
            return ledger.last_round

    @property
    def summary(self) -> dict[str, Any]:
        """The run in some twenty numbers: losses in nats, seconds, bytes per client and round.

        Raises:
            ConfigError: the run has not finished.
        """
        try:
            summary: dict[str, Any] = json.loads((self.folder / SUMMARY).read_text("utf-8"))
        except OSError:
            raise ConfigError(
                f"{self.folder}: {SUMMARY} expected, which a run writes when it has finished; "
                "dandelion.resume(folder) goes on with it"
            ) from None
        return summary

    @property
    def metrics(self) -> "DataFrame":
        """One row a round, one column for each number that the server noted of it.

        Columns: ``round``; ``timestamp`` (UTC); ``loss`` (nats, mean of the sites by examples);
        ``gradient_norm``; ``learning_rate``; ``clients``; ``forwards`` (passes of all sites);
        ``bytes_up`` and ``bytes_down`` (payload of all sites); ``seconds``.
        """
        from dataclasses import fields

        from pandas import DataFrame, to_datetime

        from server.ledger.records import Metrics

        with ledger_of(self.folder) as ledger:
            rows = [asdict(each) for each in ledger.metrics()]
        table = DataFrame(rows, columns=[each.name for each in fields(Metrics)])
        table["timestamp"] = to_datetime(table["timestamp"])
        return table

    @property
    def evaluations(self) -> "DataFrame":
        """One row for each evaluation on the server's held-out examples.

        Columns: ``round`` (0 is the model that the run started from); ``loss`` in nats; and, if
        the task has classes, its scores, such as ``accuracy`` and ``f1``, from 0 to 1.
        """
        from pandas import DataFrame

        with ledger_of(self.folder) as ledger:
            table = DataFrame(ledger.evaluations(), columns=["round", "loss"])
            for name, series in ledger.scores().items():
                table[name] = table["round"].map(dict(series))
        return table

    def model(self) -> ReplayedModel:
        """The model after the last round, with its tokenizer; as ``replay(run.rounds)``."""
        return self.replay(self.rounds)

    def replay(self, round: int) -> ReplayedModel:
        """The model as it was after a round, rebuilt from base model and ledger.

        Args:
            round: 0 for the model that the run started from, up to ``run.rounds``.

        Raises:
            ConfigError: there is no such round.
            DivergedError: the parameters are not those of the run.
            GapError: gradients of earlier rounds were dropped; says which rounds can be rebuilt.

        Example:
            >>> model = dandelion.load_run("runs/read").replay(1)
            >>> model.round, sum(each.numel() for each in model.parameters.values())
            (1, 124864)
        """
        with plain_torch(), ledger_of(self.folder) as ledger:
            return replay_ledger(ledger, round)

    def export(
        self,
        path: str | Path,
        *,
        round: int | None = None,
        merge: bool = False,
        dtype: str = "f32",
    ) -> Path:
        """Write the model of a round for others, as ``dandelion export`` does; return where.

        Args:
            path: a new folder, which gets safetensors, tokenizer and model card (of a run with
                ``scope = lora`` the adapters alone); or a file that ends in ``.gguf``.
            round: after which the model is taken; the last.
            merge: adapters are added into their layers, and the whole model is written.
            dtype: of a GGUF file: f32, f16 or bf16.

        Raises:
            ConfigError: the folder has files, there is nothing to merge, or the architecture has
                no GGUF form here.

        Example:
            >>> path = dandelion.load_run("runs/read").export("read-model", round=1)
            >>> sorted(each.name for each in path.iterdir())[:2]
            ['README.md', 'config.json']
        """
        from dandelion.export.formats.exports import export_path

        target = Path(path).expanduser().resolve()
        model = self.replay(self.rounds if round is None else round)
        return export_path(model, self.config, target, merge, dtype)

    def verify(self) -> Verification:
        """Rebuild every round from base model and ledger, and compare every recorded digest.

        Raises:
            DivergedError: a digest, or a learning rate, is not the recorded one.
            LedgerError: the ledger is damaged.

        Example:
            >>> check = dandelion.load_run("runs/read").verify()
            >>> check.rounds, check.digests
            (2, 3)
        """
        with plain_torch(), ledger_of(self.folder) as ledger:
            return verify_ledger(ledger)

    def plot(self, path: str | Path | None = None) -> "Figure":
        """Draw the sites' loss and the held-out loss against rounds and against bytes.

        Args:
            path: where to save the picture too; the ending names the format.
        """
        from dandelion.monitor.notebook import show_figures_as_pictures
        from server.reporting.loss_plot import loss_figure

        show_figures_as_pictures()
        with ledger_of(self.folder) as ledger:
            figure = loss_figure(ledger)
        if path is not None:
            figure.savefig(Path(path).expanduser(), dpi=140)
        return figure

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.rounds} rounds)"

    def _repr_html_(self) -> str:
        """The summary as a table, for notebooks; of a run that goes on, its path and round."""
        title = f"<b>{escape(repr(self))}</b>"
        if not (self.folder / SUMMARY).exists():
            return title
        rows = [
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:left'>{escape(text)}</td></tr>"
            for section in summary_sections(self.summary)
            for name, text in section
        ]
        return f"{title}<table>{''.join(rows)}</table>"


def load_run(folder: str | Path) -> Run:
    """Read the run in a folder; it may have finished, have stopped, or still train.

    Args:
        folder: of the run; has ``ledger.sqlite``.

    Raises:
        LedgerError: there is no ledger, or it is damaged.
    """
    path = Path(folder).expanduser().resolve()
    with ledger_of(path):
        return Run(path)
