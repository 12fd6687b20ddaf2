"""Supervises programs: starts each in its own session, restarts it, ends all together."""

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

from dandelion.engines.process_tree import end_session, end_with_parent

SCRATCH_VARIABLE = "DANDELION_SCRATCH"  # names a program's folder for temporary files to it
RESTART_PAUSE_S = 2.0
LOOK_S = 0.2  # between two looks at the programs
LATE_S = 20.0  # a program that has not started well by then is reported
LARGEST_LOG_BYTES = 32 << 20  # then it becomes ``.log.1``
ORPHAN_S = 10.0  # for an orphan to end by itself
STEADY_S = 20.0  # a program that ran for longer has started well


@dataclass
class Program:
    """One program: its command and environment, its process, and how often it died in a row."""

    name: str
    command: list[str]
    folder: Path
    environment: Mapping[str, str]
    log: Path
    fatal: str = ""  # text in the log after which it hangs without ending
    well: str = ""  # text in the log after which it has started well
    news: str = ""  # what is said when it has
    scratch: bool = False  # whether it gets a folder for temporary files, removed when it ends
    waits_for: str = ""  # a program whose death it would not notice: it is restarted too
    process: "subprocess.Popen[bytes] | None" = None
    deaths: int = 0
    since: float = 0.0  # its last start (``time.monotonic``)
    failing_since: float = 0.0  # the first start of those that ended badly
    log_position: int = 0  # bytes of the log that were read
    hangs: bool = False  # whether ``fatal`` is in the log since its last start
    is_well: bool = False
    scratch_folder: Path | None = None

    def start(self) -> None:
        """Start it, and append to its log."""
        self._remove_scratch()
        self.hangs = self.is_well = False
        self.scratch_folder = Path(tempfile.mkdtemp(prefix="dandelion-")) if self.scratch else None
        with self.log.open("ab") as log:
            self.log_position = log.tell()
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env={**self.environment, SCRATCH_VARIABLE: str(self.scratch_folder or "")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509  (one system call, before exec)
            )
        write_pid(self.pid_file, self.process.pid)
        self.since = time.monotonic()
        if not self.deaths:
            self.failing_since = self.since

    def check(self) -> int | None:
        """Read its log, end it if it hangs, and return its exit status; None while it runs."""
        self._read_log()
        if self.hangs:
            self.end()
        status = self.process.poll() if self.process else None
        if status is not None:
            steady = time.monotonic() - self.since > STEADY_S or self.is_well
            self.deaths = 1 if steady else self.deaths + 1
            if steady:
                self.failing_since = time.monotonic()
        return status

    def seconds_failing(self) -> float:
        """Seconds since the first start of those that ended badly; 0 while it is well or waits.

        A start that has lasted for LATE_S has not failed: the program waits for its server.
        """
        now = time.monotonic()
        runs = self.process is not None and self.process.returncode is None
        if not self.deaths or (runs and (self.is_well or now - self.since > LATE_S)):
            return 0.0
        return now - self.failing_since

    def end(self) -> None:
        """End it and the processes that it started."""
        if self.process is not None:
            end_session(self.process)
            self.pid_file.unlink(missing_ok=True)
        self._remove_scratch()

    @property
    def pid_file(self) -> Path:
        """The file with the number of its process."""
        return self.log.with_suffix(".pid")

    def end_orphan(self) -> int | None:
        """End what an earlier supervisor started and left when it was killed; return its pid."""
        if (pid := find_process(self.pid_file)) is None:
            return None
        for kind in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(pid, kind)
            except ProcessLookupError:
                break
            deadline = time.monotonic() + ORPHAN_S
            while find_process(self.pid_file) is not None and time.monotonic() < deadline:
                time.sleep(LOOK_S)
        self.pid_file.unlink(missing_ok=True)
        return pid

    def _remove_scratch(self) -> None:
        """Remove its folder of temporary files; a killed program leaves some."""
        if self.scratch_folder is not None:
            shutil.rmtree(self.scratch_folder, ignore_errors=True)

    def _read_log(self) -> None:
        """Look for ``fatal`` and ``well`` in new lines; begin a new log if this is long."""
        with self.log.open("rb") as log:
            log.seek(self.log_position)
            unread = log.read()
        whole = unread[: unread.rfind(b"\n") + 1]
        self.log_position += len(whole)
        self.hangs |= bool(self.fatal) and self.fatal.encode() in whole
        self.is_well |= bool(self.well) and self.well.encode() in whole
        if self.log_position > LARGEST_LOG_BYTES:
            shutil.copyfile(self.log, self.log.with_suffix(".log.1"))
            os.truncate(self.log, 0)  # the program appends, so it goes on at the new end
            self.log_position = 0

    def tail(self, size: int = 2000) -> str:
        """The last characters of its log."""
        return self.log.read_text(errors="replace")[-size:]


def quote(command: Iterable[str]) -> str:
    """The command as a line for a shell."""
    return shlex.join(command)


class Keeper:
    """Keeps programs running until a signal comes or it gives up one of them."""

    def __init__(self, programs: list[Program], say: Callable[[str], None]) -> None:
        self._programs, self._say = programs, say
        self._reported: dict[str, str] = {}  # what was said last of each, by name
        self._stopping = threading.Event()

    def stop(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Make ``run`` return soon; a signal handler."""
        self._stopping.set()

    def run(self, give_up: Callable[[Program, int | None], bool]) -> Program | None:
        """Start all programs, and restart those that end.

        Returns:
            The program for which ``give_up(program, status)`` was true, or None after a signal. Its
            status is None while the program runs.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self.stop)
        try:
            for each in self._programs:
                if (orphan := each.end_orphan()) is not None:
                    self._say(f"ended process {orphan}: a {each.name} that was left here")
                self._say(f"$ {quote(each.command)}")
                each.start()
            return self._keep(give_up)
        finally:
            for each in reversed(self._programs):
                each.end()

    def _keep(self, give_up: Callable[[Program, int | None], bool]) -> Program | None:
        while not self._stopping.wait(LOOK_S):
            for each in self._programs:
                status = each.check()
                if (status is not None or each.deaths) and give_up(each, status):
                    return each
                if status is None:
                    self._report(each)
                    continue
                self._say(f"{each.name} ended with status {status}; it is restarted")
                waiting = [other for other in self._programs if other.waits_for == each.name]
                for other in waiting:
                    other.end()
                if self._stopping.wait(RESTART_PAUSE_S):
                    return None
                for program in (*waiting, each):
                    program.start()
        return None

    def _report(self, each: Program) -> None:
        """Say once for each start that a program has started well, or has not yet and goes on."""
        late = time.monotonic() - each.since > LATE_S
        if each.is_well and each.news:
            text = f"{each.name} {each.news}"
        elif each.well and late and not each.is_well:
            text = f"{each.name} has not connected yet and goes on trying; its log: {each.log}"
        else:
            return
        if self._reported.get(each.name) != text:
            self._say(text)
            self._reported[each.name] = text


def write_pid(file: Path, pid: int) -> None:
    """Write the number of a process, and when it started, so that it is never mistaken."""
    file.write_text(f"{pid} {_start_time(pid)}".strip())


def find_process(pid_file: Path) -> int | None:
    """The number of the process that a file names, or None if it does not run."""
    try:
        pid, _, started = pid_file.read_text().partition(" ")
        os.kill(number := int(pid), 0)
    except (OSError, ValueError):
        return None
    return number if started in ("", _start_time(number)) else None


def _start_time(pid: int) -> str:
    """When a process started, in ticks since the machine did; empty: unknown, or a zombie."""
    try:
        fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
