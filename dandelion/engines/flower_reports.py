"""What Flower's log and status say of a run: its progress, its error, and a machine too slow."""

import re
from pathlib import Path

from server.reporting.status_line import PREFIX

TOKEN_LOST = "Runtime task-token authentication failed"  # in a SuperLink's log
TOO_SLOW = (
    "a process of Flower's was too slow: it has 30 s to begin and may be silent for 60 s; "
    "end other programs on this machine"
)
NO_NODE = "The current node timed out during startup"  # Ray's, in the log of the run's processes
RAY_LATE = "Ray did not begin in time; it gives its own processes 15 s, on a busy machine too few"
ERROR_LINE = re.compile(r"(\w+\.)*\w*(Error|Exception|Interrupt|Exit)\b")


def progress_lines(log: str) -> list[str]:
    """What a run says of its progress, and once, if Flower's log shows it, that it is too slow.

    Flower takes its token from a process that has not begun within 30 s or is silent for 60 s. One
    that has not begun is started anew, without end; one that is silent ends the run.
    """
    lines: list[str] = []
    for line in log.splitlines():
        if PREFIX in line:
            lines.append(line.partition(PREFIX)[2])
        elif TOKEN_LOST in line and TOO_SLOW not in lines:
            lines.append(TOO_SLOW)
    return lines


def has_ended(log: str, run_id: str) -> bool:
    """Whether a SuperLink's log says that the task of a run has ended, well or not."""
    return re.search(rf"Finished task \d+ of run {run_id}\b", log) is not None


def failure_text(run_id: str, status: str, details: str, log: Path) -> str:
    """Why a run ended: the error of its ServerApp, which Flower keeps as the status' details."""
    lines = [line.strip() for line in details.splitlines() if line.strip()]
    named = [line for line in lines if ERROR_LINE.match(line)]
    reason = (named or lines or ["the ServerApp gave no reason"])[-1]
    text = log.read_text(errors="replace") if log.is_file() else ""
    busy = f"; {TOO_SLOW}" * (TOKEN_LOST in text) + f"; {RAY_LATE}" * (NO_NODE in text)
    return f"Flower run {run_id} ended as {status}: {reason}; its log: {log}{busy}"
