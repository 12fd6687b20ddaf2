"""Writes a run's scalars from its ledger as a TensorBoard event file, also while it trains."""

import time
from contextlib import closing
from pathlib import Path

from server.ledger.reader import LedgerReader
from server.ledger.run_folder import LEDGER, read_config
from server.tracking.points import LedgerPoints
from server.tracking.tensorboard import TensorBoard
from server.tracking.tracker import TrackedRun


def write(folder: Path, follow_s: float = 0.0) -> Path:
    """Write all rounds of a run; with ``follow_s``, also new ones every so many seconds, until ^C.

    A file that was written before is replaced.

    Raises:
        LedgerError: the folder has no ledger, or a damaged one.
    """
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        config, board = read_config(ledger), TensorBoard()
        run = TrackedRun(folder.name, ledger.header("run").hex(), folder, config.to_run_config())
        points = LedgerPoints(ledger, config, board.start(run))
        try:
            while True:
                for point in points.read_new():
                    board.log(point)
                if not follow_s:
                    return board.path
                time.sleep(follow_s)
        finally:
            board.finish()
