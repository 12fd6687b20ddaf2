"""Flower's SuperNode and SuperExec without most of their waits.

Flower 1.41 starts an interpreter for every message and imports itself there; it sleeps 3 s when a
node has no message, and 1 s when part of one is not there yet; it gives up where a TLS handshake
breaks off, as it does when a server behind a balancer is restarted. Here processes are forked from
one that has imported Flower, the sleeps begin short and grow to Flower's own, and a handshake is
tried again. Messages, processes and checks are Flower's:
``python -P flower_patches.py PROGRAM OPTION ...`` takes a program and its options.

This file is run by its path, so that no package of ours is there before the app's own.
"""

import importlib.metadata
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from flwr.supercore.constant import TASK_TYPE_TO_APPIO_API_ADDRESS_ARG, TASK_TYPE_TO_COMMAND
from flwr.supercore.retry import RetryInvoker, http_retry
from flwr.supercore.superexec.executor import (
    ExecutionSpec,
    Executor,
    LaunchResult,
    SubprocessExecutor,
)
from setproctitle import setproctitle

FILE = Path(__file__).name
PROGRAMS = ("flower-supernode", "flower-superexec")
IDLE_S, FIRST_S = 3.0, 0.2  # Flower's when there is no message; ours then, doubled each time
ANSWER_S, LOCAL_S = 0.5, 0.02  # Flower's and ours between two looks whether a ClientApp is done
OBJECT_S = 0.05  # the first sleep where a part of a message is not there yet
AWAY_S = 4  # the longest sleep before the other side, gone or not reached, is tried again
BROKEN_OFF = ("eof occurred", "connection reset", "timed out", "broken pipe")  # of a handshake
PRELOAD = "DANDELION_PRELOAD"  # modules that tasks find imported, with commas between them
SCRATCH = "DANDELION_SCRATCH"  # a folder that goes when this process does, for temporary files

Judge = Callable[[Exception], bool]


class Clock:
    """The module ``time`` as a SuperNode's main loop sees it.

    Args:
        sleep: sleeps for a number of seconds.
    """

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep, self._next_s = sleep, FIRST_S

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """Sleep for less than Flower would where the reason to is known, else as it would."""
        if seconds == ANSWER_S:
            self._next_s, seconds = FIRST_S, LOCAL_S
        elif seconds == IDLE_S:
            seconds = self._next_s
            self._next_s = min(2 * seconds, IDLE_S)
        self._sleep(seconds)


class PatientInvoker(RetryInvoker):
    """Tries again what Flower gives up: a connection that broke off in its TLS handshake."""

    @property
    def should_giveup(self) -> Judge | None:
        """Whether an error is not worth another try."""
        return self._judge

    @should_giveup.setter
    def should_giveup(self, judge: Judge | None) -> None:
        self._judge = lambda error: not broke_off(error) and judge is not None and judge(error)


def broke_off(error: Exception) -> bool:
    """Whether a connection ended before there was an answer, for no reason of its own."""
    text = str(error).lower()
    return isinstance(error, httpx.TransportError) and any(word in text for word in BROKEN_OFF)


class ForkExecutor(SubprocessExecutor):
    """Starts tasks as Flower's ``SubprocessExecutor`` does, by the standard library's forkserver.

    Args:
        loaded: modules that a task's process finds imported; one that is missing is left out.
    """

    def __init__(self, loaded: list[str]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["__main__", *loaded])

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Fork a process that runs the task's command."""
        words = command(spec)
        self._context.Process(target=perform, args=(words, spec.suppress_output)).start()
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Forget the processes that have ended."""
        multiprocessing.active_children()


def command(spec: ExecutionSpec) -> list[str]:
    """One of Flower's commands for a task, with its arguments."""
    words = [TASK_TYPE_TO_COMMAND[spec.task_type]]
    words += [TASK_TYPE_TO_APPIO_API_ADDRESS_ARG[spec.task_type], spec.runtime_api_address]
    words += ["--token", spec.token]
    if spec.insecure:
        words += ["--insecure"]
    elif spec.root_certificates_path is not None:
        words += ["--root-certificates", spec.root_certificates_path]
    if spec.parent_pid is not None:
        words += ["--parent-pid", str(spec.parent_pid)]
    if spec.runtime_dependency_install:
        words += ["--allow-runtime-dependency-installation"]
    return words


def perform(words: list[str], quiet: bool = False) -> None:
    """Be one of Flower's programs in a forked process, and be seen under its name."""
    if quiet:
        null = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(null, number)
    os.environ["SPT_NOENV"] = "1"  # the title takes the place of the arguments alone
    setproctitle(" ".join(words[:3]))  # without the task's token
    hasten()
    _become(words)


def _become(words: list[str]) -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name=words[0])
    sys.argv = words
    sys.exit(script.load()())


def hasten() -> None:
    """Have this process look soon for what is not there yet, end when told to, leave no file."""
    from flwr.supercore.inflatable import inflatable_utils

    tempfile.tempdir = os.environ.get(SCRATCH) or None
    replace(vars(signal), "raise_signal", _raise)
    for name in ("pull_objects", "pull_and_inflate_object_from_tree"):
        replace(getattr(inflatable_utils, name).__kwdefaults__, "initial_backoff", OBJECT_S)
    replace(vars(http_retry), "MAX_RETRY_DELAY", AWAY_S)
    replace(vars(http_retry), "RetryInvoker", PatientInvoker)


def _raise(number: int) -> None:
    """Send a signal to the whole process, so that it wakes the main thread.

    Flower raises one in a thread of its own when the parent process is gone. It stays there while
    the main thread waits for what never comes, and the process would stay for ever.
    """
    os.kill(os.getpid(), number)


def replace(names: dict[str, Any], name: str, value: object) -> None:
    """Replace what Flower looks up by name.

    Raises:
        SystemExit: it has no such name; another release than the one that this was written for.
    """
    if name not in names:
        found = importlib.metadata.version("flwr")
        sys.exit(
            f"flower_patches.py: Flower 1.41 expected, got {found} without {name!r}; use --stock"
        )
    names[name] = value


def _fork(*_: object, **__: object) -> Executor:
    return ForkExecutor(os.environ.get(PRELOAD, "").split(","))


def main() -> None:
    """Run the program that the first argument names."""
    from flwr.supercore.superexec import run_superexec
    from flwr.supernode import start_client_internal

    if (name := sys.argv[1] if len(sys.argv) > 1 else "") not in PROGRAMS:
        sys.exit(f"{FILE}: one of {', '.join(PROGRAMS)} expected, got {name!r}")
    replace(vars(start_client_internal), "time", Clock())
    replace(vars(run_superexec), "get_executor", _fork)
    hasten()
    _become(sys.argv[1:])


if __name__ == "__main__":
    main()
