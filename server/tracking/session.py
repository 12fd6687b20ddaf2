"""The trackers of a run: each gets every round once, and none can make the run fail."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from server.ledger.reader import LedgerReader
from server.tracking.points import LedgerPoints
from server.tracking.tracker import TRACKERS, TrackedRun, Tracker
from shared.base.errors import interruption_of
from shared.base.text import portable
from shared.config.schema import Config

LOG = logging.getLogger("dandelion")
OF_PLACES = ("output-dir", "app-dir", "resume")  # settings that name folders of this machine


def make_trackers(config: Config) -> dict[str, Tracker]:
    """The trackers that a run's settings name; none is started.

    Raises:
        UnknownNameError: no tracker has the name.
        ConfigError: its package is not installed.
    """
    names = [name.strip() for name in config.run.trackers.split(",")]
    return {name: TRACKERS[name]() for name in names if name}


@contextmanager
def track(
    trackers: dict[str, Tracker], folder: Path, ledger: LedgerReader, config: Config
) -> Iterator[Callable[[], None]]:
    """Start trackers; yield what hands them all new rounds; finish them at the end, however it is.

    Of a folder of this machine, such as that of the data, they get the last part alone. A tracker
    that raises an error is left out from then on, with a warning.
    """
    settings = {
        key: portable(value) if isinstance(value, str) else value
        for key, value in config.to_run_config().items()
        if key not in OF_PLACES
    }
    run = TrackedRun(folder.name, ledger.header("run").hex(), folder, settings)
    feeds = [_Feed(name, tracker) for name, tracker in trackers.items()]
    for feed in feeds:
        feed.start(run, ledger, config)

    def hand_on() -> None:
        for feed in feeds:
            feed.hand_on()

    try:
        yield hand_on
    finally:
        for feed in feeds:
            feed.finish()


class _Feed:
    """One tracker, and what it has had."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._points: LedgerPoints | None = None  # None: not started, or failed

    def start(self, run: TrackedRun, ledger: LedgerReader, config: Config) -> None:
        """Start the tracker, or go on with the run after the last round that it has."""
        with self._guard():
            last = self._tracker.start(run)
            self._points = LedgerPoints(ledger, config, min(last, ledger.last_round))

    def hand_on(self) -> None:
        """Log the rounds that are new."""
        if self._points is None:
            return
        for point in self._points.read_new():
            with self._guard():
                self._tracker.log(point)
            if self._points is None:
                return

    def finish(self) -> None:
        """Log what is left, and end."""
        self.hand_on()
        if self._points is not None:
            with self._guard():
                self._tracker.finish()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a library raises: the run goes on
            if (stop := interruption_of(error)) is not None:
                raise stop from None
            self._points = None
            LOG.warning(
                "tracker %s failed and gets no more rounds: %s: %s",
                self._name, type(error).__name__, error,
            )  # fmt: skip
