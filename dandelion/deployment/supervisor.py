"""Programs that are kept running: started in sessions of their own, restarted, ended together."""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dandelion.engines.flower_simulation import end_session

SCRATCH = "DANDELION_SCRATCH"  # the variable that names a program's own folder to it
PAUSE_S = 2.0  # before a restart
LOOK_S = 0.2
LATE_S = 20.0  # a program that has not started well by then is spoken of
LONGEST_LOG = 32 << 20  # bytes; one that is older is kept
STEADY_S = 20.0  # a program that ran for so long has started well


@dataclass
class Program:
    """One program: its command, where it runs, and how often it died before it ran steadily."""

    name: str
    command: list[str]
    folder: Path
    environment: Mapping[str, str]
    log: Path
    fatal: str = ""  # after saying this it does nothing any more, though it does not end
    well: str = ""  # after saying this it has started well
    scratch: bool = False  # whether it gets a folder of its own for what is gone when it ends
    process: "subprocess.Popen[bytes] | None" = None
    deaths: int = 0
    since: float = 0.0  # its last start (``time.monotonic``)
    first_death: float = 0.0  # of those in a row
    heard: int = 0  # bytes of the log that were read
    hangs: bool = False  # whether it has said what is fatal, since its last start
    is_well: bool = False
    made: Path | None = None  # the folder

    def start(self) -> None:
        """Start it; its log goes on."""
        self._clear()
        self.hangs = self.is_well = False
        self.made = Path(tempfile.mkdtemp(prefix="dandelion-")) if self.scratch else None
        with self.log.open("ab") as log:
            self.heard = log.tell()
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env={**self.environment, SCRATCH: str(self.made or "")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.since = time.monotonic()

    def died(self) -> int | None:
        """Its exit status, once it has ended by itself; None while it runs."""
        self._listen()
        if self.hangs:
            self.end()
        status = self.process.poll() if self.process else None
        if status is not None:
            steady = time.monotonic() - self.since > STEADY_S or self.is_well
            self.deaths = 1 if steady else self.deaths + 1
            self.first_death = time.monotonic() if self.deaths == 1 else self.first_death
        return status

    def failing(self) -> float:
        """Seconds since the first of its deaths in a row."""
        return time.monotonic() - self.first_death if self.deaths else 0.0

    def end(self) -> None:
        """End it, and what it started."""
        if self.process is not None:
            end_session(self.process)
        self._clear()

    def _clear(self) -> None:
        """Remove what it left; whoever was killed leaves something."""
        if self.made is not None:
            shutil.rmtree(self.made, ignore_errors=True)

    def _listen(self) -> None:
        """Read what it has said; begin the log anew where it has become long."""
        with self.log.open("rb") as log:
            log.seek(self.heard)
            said = log.read()
        whole = said[: said.rfind(b"\n") + 1]
        self.heard += len(whole)
        self.hangs |= bool(self.fatal) and self.fatal.encode() in whole
        self.is_well |= bool(self.well) and self.well.encode() in whole
        if self.heard > LONGEST_LOG:
            shutil.copyfile(self.log, self.log.with_suffix(".log.1"))
            os.truncate(self.log, 0)  # it is written at its end, wherever that is
            self.heard = 0

    def tail(self, size: int = 2000) -> str:
        """The end of what it said."""
        return self.log.read_text(errors="replace")[-size:]


def printed(command: Iterable[str]) -> str:
    """A command as a shell would read it."""
    return shlex.join(command)


class Keeper:
    """Keeps programs running until a signal comes or one of them is given up."""

    def __init__(self, programs: list[Program], say: Callable[[str], None]) -> None:
        self._programs, self._say, self._told = programs, say, set[str]()
        self._stopping = threading.Event()

    def stop(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Have ``run`` return soon; takes what a signal handler is given."""
        self._stopping.set()

    def run(self, give_up: Callable[[Program, int], bool]) -> Program | None:
        """Start all; restart what dies; return what was given up, or None after a signal."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self.stop)
        try:
            for each in self._programs:
                self._say(f"$ {printed(each.command)}")
                each.start()
            return self._keep(give_up)
        finally:
            for each in reversed(self._programs):
                each.end()

    def _keep(self, give_up: Callable[[Program, int], bool]) -> Program | None:
        while not self._stopping.wait(LOOK_S):
            for each in self._programs:
                status = each.died()
                if status is None:
                    self._tell(each)
                    continue
                if give_up(each, status):
                    return each
                self._say(f"{each.name} ended with status {status}; it is started again")
                if self._stopping.wait(PAUSE_S):
                    return None
                each.start()
        return None

    def _tell(self, each: Program) -> None:
        """Say once of a program that it runs, but has not started well yet."""
        late = time.monotonic() - each.since > LATE_S
        if each.well and late and not each.is_well and each.name not in self._told:
            self._say(
                f"{each.name} has not got through yet, and goes on trying; its log: {each.log}"
            )
            self._told.add(each.name)


def alive(pid_file: Path) -> int | None:
    """The process that a file names, if it is there."""
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return pid
