"""The model of any round of a strategy's ledger: from the initial arrays and the entries alone."""

from contextlib import closing
from pathlib import Path

from flwr.app import ArrayRecord
from torch import nn

from server.ledger.reader import LedgerReader
from server.strategies.global_model import GlobalModel
from server.strategies.session import ABOUT
from shared.apps.app_run import AppRun
from shared.base.errors import ConfigError, LedgerError
from shared.replica.replica import check_digest


def rebuild_from_ledger(
    ledger: str | Path, model: nn.Module, initial_arrays: ArrayRecord, round_: int | None = None
) -> nn.Module:
    """Return a copy of a module with the parameters of a round, rebuilt and checked.

    The ledger's hash chain is checked when it is opened, and the digest of the parameters after
    every round that is replayed.

    Args:
        ledger: the path that ``ZerothOrder(ledger=…)`` was given.
        model: as ``ZerothOrder`` was given it.
        initial_arrays: as ``start`` was given them.
        round_: from 0, the initial arrays, to the last round; None: the last.

    Raises:
        LedgerError: no ledger of a strategy, or a damaged one.
        ConfigError: no such round, or the arrays are not those that the run began with.
        DivergedError: the entries give other parameters than were recorded.

    Example (after a run with ``ledger="run.sqlite"``)::

        module = dandelion.rebuild_from_ledger("run.sqlite", Net(), initial_arrays, round_=2)
    """
    with closing(LedgerReader.open(Path(ledger))) as reader:
        about = _about(reader)
        last = reader.last_round
        to = last if round_ is None else round_
        if not 0 <= to <= last:
            raise ConfigError(f"{ledger}: a round from 0 to {last} expected, got {to}")
        fresh = GlobalModel.of(model, initial_arrays, about.config, about.batches, about.weight_key)
        if (fresh.about.initial, fresh.about.frozen) != (about.initial, about.frozen):
            raise ConfigError(
                f"{ledger}: the run began with other arrays: digest {about.initial} expected, got "
                f"{fresh.about.initial} (and {about.frozen}, got {fresh.about.frozen}, of what is "
                "not trained)"
            )
        entries = (reader.entry(number) for number in range(1, to + 1))
        for number, digest in fresh.flat.replica.apply_with_digests(entries):
            check_digest(number, digest, reader.digest(number))
    return fresh.flat.module


def _about(reader: LedgerReader) -> AppRun:
    try:
        return AppRun.decode(reader.header(ABOUT).decode())
    except LedgerError as error:
        raise LedgerError(
            f"{reader.path}: the ledger of a strategy expected; 'dandelion ledger verify' is "
            "for those of 'dandelion run'"
        ) from error
