"""Patches Flower's SuperNode and SuperExec so that they wait less.

Flower 1.41 and 1.42 start an interpreter for every message and import themselves there. They sleep
3 s if a node has no message, and 1 s if part of one has not arrived. They give up if a TLS
handshake breaks off, as happens when a server behind a balancer restarts. With these patches,
processes are forked from one that has imported Flower, the sleeps begin short and grow to Flower's
own, and a handshake is tried again. Messages, processes and checks stay Flower's.

``python -P flower_patches.py PROGRAM OPTION ...`` runs a program with its options, and ``--check``
prints what they replace and the installed Flower lacks. This file is run by its path, so that no
package of ours is imported before the app's own.
"""

import importlib
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

FILE_NAME = Path(__file__).name
PROGRAMS = ("flower-supernode", "flower-superexec")
IDLE_S, FIRST_IDLE_S = 3.0, 0.2  # Flower's sleep without a message; our first, then doubled
ANSWER_S, ANSWER_POLL_S = 0.5, 0.02  # Flower's sleep until a ClientApp is done; ours
OBJECT_S = 0.05  # the first sleep if a part of a message has not arrived
RETRY_S = 4  # the longest sleep before an unreachable server is tried again
BROKEN_HANDSHAKE = ("eof occurred", "connection reset", "timed out", "broken pipe")
PRELOAD_VARIABLE = "DANDELION_PRELOAD"  # modules to import before a task, with commas
SCRATCH_VARIABLE = "DANDELION_SCRATCH"  # a folder for temporary files of this process

PULLS = ("pull_objects", "pull_and_inflate_object_from_tree")  # of ``inflatable_utils``
REPLACED = (  # what is looked up by name in a module of Flower
    ("flwr.supercore.retry.http_retry", "MAX_RETRY_DELAY"),
    ("flwr.supercore.retry.http_retry", "RetryInvoker"),
    ("flwr.supernode.start_client_internal", "time"),
    ("flwr.supercore.superexec.run_superexec", "get_executor"),
)

ErrorTest = Callable[[Exception], bool]


class Clock:
    """Stands for the module ``time`` in a SuperNode's main loop.

    Args:
        sleep: sleeps for a number of seconds.
    """

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep, self._next_s = sleep, FIRST_IDLE_S

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """Sleep for less than ``seconds`` if they are those of a known wait, else for as long."""
        if seconds == ANSWER_S:
            self._next_s, seconds = FIRST_IDLE_S, ANSWER_POLL_S
        elif seconds == IDLE_S:
            seconds = self._next_s
            self._next_s = min(2 * seconds, IDLE_S)
        self._sleep(seconds)


class PatientInvoker(RetryInvoker):
    """Retries connections that broke off in their TLS handshake; Flower gives these up."""

    @property
    def should_giveup(self) -> ErrorTest | None:
        """The test whether an error should not be retried."""
        return self._test

    @should_giveup.setter
    def should_giveup(self, test: ErrorTest | None) -> None:
        self._test = lambda error: (
            not is_broken_handshake(error) and test is not None and test(error)
        )


def is_broken_handshake(error: Exception) -> bool:
    """Whether a connection ended without an answer, and not because a check failed."""
    text = str(error).lower()
    return isinstance(error, httpx.TransportError) and any(
        word in text for word in BROKEN_HANDSHAKE
    )


class ForkExecutor(SubprocessExecutor):
    """Starts tasks like Flower's ``SubprocessExecutor``, but forks them with ``multiprocessing``.

    Args:
        loaded: modules to import before a task runs; a missing one is ignored.
    """

    def __init__(self, loaded: list[str]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["__main__", *loaded])

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Fork a process that runs the task's command."""
        words = task_command(spec)
        self._context.Process(target=perform, args=(words, spec.suppress_output)).start()
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Forget the processes that have ended."""
        multiprocessing.active_children()


def task_command(spec: ExecutionSpec) -> list[str]:
    """The command of a task with its arguments, as Flower builds it."""
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
    """Run one of Flower's programs in this forked process, under its name."""
    if quiet:
        null = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(null, number)
    os.environ["SPT_NOENV"] = "1"  # the title overwrites the arguments only
    setproctitle(" ".join(words[:3]))  # without the task's token
    shorten_waits()
    _run_program(words)


def _run_program(words: list[str]) -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name=words[0])
    sys.argv = words
    sys.exit(script.load()())


def shorten_waits() -> None:
    """Patch Flower in this process: short sleeps, signals that end it, a folder for its files."""
    from flwr.supercore.inflatable import inflatable_utils

    tempfile.tempdir = os.environ.get(SCRATCH_VARIABLE) or None
    replace(vars(signal), "raise_signal", _raise)
    for name in PULLS:
        replace(getattr(inflatable_utils, name).__kwdefaults__, "initial_backoff", OBJECT_S)
    replace(vars(http_retry), "MAX_RETRY_DELAY", RETRY_S)
    replace(vars(http_retry), "RetryInvoker", PatientInvoker)


def _raise(number: int) -> None:
    """Send a signal to the whole process, so that it wakes the main thread.

    If the parent process is gone, Flower raises a signal in a thread of its own. The main thread
    would not wake up for it, and the process would never end.
    """
    os.kill(os.getpid(), number)


def find_missing() -> list[str]:
    """The names, of those that are replaced, which the installed release of Flower lacks.

    Raises:
        ImportError: a module of Flower is not there.
    """
    utils = importlib.import_module("flwr.supercore.inflatable.inflatable_utils")
    pulls = {name: getattr(utils, name, None) for name in PULLS}
    return [
        *(f"{module}.{name}" for module, name in REPLACED if not _has(module, name)),
        *(
            f"{utils.__name__}.{name}(initial_backoff)"
            for name, pull in pulls.items()
            if "initial_backoff" not in (getattr(pull, "__kwdefaults__", None) or {})
        ),
    ]


def _has(module: str, name: str) -> bool:
    return hasattr(importlib.import_module(module), name)


def replace(names: dict[str, Any], name: str, value: object) -> None:
    """Replace a value that Flower looks up by name.

    Raises:
        SystemExit: there is no such name, so this is another release of Flower.
    """
    if name not in names:
        installed = importlib.metadata.version("flwr")
        sys.exit(
            f"{FILE_NAME}: Flower 1.41 or 1.42 expected, got {installed} without {name!r}; "
            "use --stock"
        )
    names[name] = value


def _make_executor(*_: object, **__: object) -> Executor:
    return ForkExecutor(os.environ.get(PRELOAD_VARIABLE, "").split(","))


def main() -> None:
    """Run the program that the first argument names, or print what the installed Flower lacks."""
    if sys.argv[1:] == ["--check"]:
        print(", ".join(find_missing()))
        return
    from flwr.supercore.superexec import run_superexec
    from flwr.supernode import start_client_internal

    if (name := sys.argv[1] if len(sys.argv) > 1 else "") not in PROGRAMS:
        sys.exit(f"{FILE_NAME}: one of {', '.join(PROGRAMS)} expected, got {name!r}")
    replace(vars(start_client_internal), "time", Clock())
    replace(vars(run_superexec), "get_executor", _make_executor)
    shorten_waits()
    _run_program(sys.argv[1:])


if __name__ == "__main__":
    main()
