"""Weights & Biases: a run there for a run here; offline, in the run folder, unless logged in."""

import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from server.tracking.tracker import TRACKERS, TrackedPoint, TrackedRun
from shared.base.extras import import_extra

PROJECT = "dandelion"  # unless WANDB_PROJECT says another
HOST = "https://api.wandb.ai"
LOGGED = "last-round"  # a file beside wandb's own: the last round that was logged
SILENT = {  # nothing of this machine but the numbers of the run
    "silent": True, "console": "off", "disable_git": True, "disable_code": True,
    "save_code": False, "x_disable_stats": True, "x_disable_meta": True,
}  # fmt: skip


@TRACKERS.register("wandb")
class WeightsAndBiases:
    """Logs through ``wandb``, which the extra ``wandb`` installs; steps are rounds.

    Offline, ``wandb sync RUN/wandb/offline-run-*`` sends what was written; a run that was resumed
    has a folder for each part, and all carry its one id.

    Raises:
        ConfigError: ``wandb`` is not installed.
    """

    def __init__(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._wandb = import_extra("wandb", "trackers = wandb", "wandb")
        self._run: Any = None
        self._logged = Path()

    def start(self, run: TrackedRun) -> int:
        folder = run.folder / "wandb"
        folder.mkdir(exist_ok=True)
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=run.id, name=run.name, resume="allow", dir=str(run.folder),
            config=dict(run.settings), mode=None if is_online() else "offline",
            settings=self._wandb.Settings(**SILENT),
        )  # fmt: skip
        self._logged = folder / LOGGED
        return int(self._logged.read_text()) if self._logged.exists() else -1

    def log(self, point: TrackedPoint) -> None:
        self._run.log(dict(point.values), step=point.round)
        self._logged.write_text(str(point.round))

    def finish(self) -> None:
        self._run.finish()


def is_online() -> bool:
    """Whether the user chose a mode or is logged in: else nothing leaves the machine."""
    if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or HOST).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
