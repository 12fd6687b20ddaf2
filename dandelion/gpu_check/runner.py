"""Runs the steps one after the other, each in a process with a time limit; needs torch alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dandelion.gpu_check.records import read_records
from dandelion.gpu_check.report import CardReport, StepOutcome
from dandelion.gpu_check.steps import CheckStep, choose
from shared.base.errors import ConfigError

MINUTES = 12.0  # of a card that is there for a quarter of an hour
LEAST_SECONDS = 5.0  # of a step: less than its imports take
KILL_AFTER = 5.0  # seconds that a step has to end after its limit
OUTPUT_CHARACTERS = 4_000  # of a step's own output that the log keeps
DEVICES = ("cpu", "cuda")
Say = Callable[[str], object]


def check(
    out: Path,
    minutes: float = MINUTES,
    device: str = "cuda",
    tiny: bool = False,
    steps: str = "",
    say: Say = print,
) -> CardReport:
    """Do the steps in order and write what they leave into ``out`` after each of them.

    Args:
        out: the folder of the results; it must hold none yet.
        minutes: for all steps together. A step may take its share of what is left.
        device: ``cuda``, ``cuda:1``, …, or ``cpu``.
        tiny: small sizes, which try every step and say nothing of speed.
        steps: names with commas; empty: all.
        say: called with a line for every step.

    Raises:
        ConfigError: no such device, no such step, no time, or results in ``out``.
    """
    chosen = choose(steps)
    _check_arguments(out, minutes, device)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    report = CardReport(out, _version(), started, minutes, tiny)
    end = time.monotonic() + 60 * minutes
    for number, step in enumerate(chosen):
        shares = sum(each.share for each in chosen[number:])
        limit = (end - time.monotonic()) * step.share / shares
        outcome = _do(step, out.resolve(), device, tiny, limit)
        report.outcomes.append(outcome)
        report.write()
        reason = f": {outcome.reason}" if outcome.reason else ""
        say(f"{outcome.title}: {outcome.status}{reason} ({outcome.seconds:.0f} s)")
    return report


def _check_arguments(out: Path, minutes: float, device: str) -> None:
    if minutes <= 0:
        raise ConfigError(f"minutes: more than 0 expected, got {minutes:g}")
    if (out / "results.json").exists():
        raise ConfigError(f"{out}: results are there already; choose another folder")
    kind, _, number = device.partition(":")
    if kind not in DEVICES or (number and not number.isdigit()):
        raise ConfigError(f"device: cpu, cuda or cuda:NUMBER expected, got {device!r}")
    if kind == "cuda":
        import torch

        cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= cards:
            raise ConfigError(
                f"device {device}: torch {torch.__version__} sees {cards} CUDA devices; "
                "with --device cpu --tiny the command can be tried without one"
            )


def _do(step: CheckStep, out: Path, device: str, tiny: bool, limit: float) -> StepOutcome:
    outcome = StepOutcome(step.name, step.title, "skipped", limit=round(limit, 1))
    if reason := step.missing(tiny):
        outcome.reason = reason
    elif limit < LEAST_SECONDS:
        outcome.reason = f"{max(limit, 0):.0f} s are left for it"
    else:
        _run(step, outcome, out, [device, f"{limit:.1f}", *["--tiny"] * tiny])
    return outcome


def _run(step: CheckStep, outcome: StepOutcome, out: Path, words: Sequence[str]) -> None:
    """Do a step in a process of its own, and fill in how it ended."""
    out.mkdir(parents=True, exist_ok=True)
    file, log = (out / f"{step.name}{suffix}" for suffix in (".jsonl", ".log"))
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "dandelion.gpu_check.steps", step.name, str(file), *words]
    started = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, start_new_session=True, env=_environment()
        )
        try:
            process.wait(outcome.limit + KILL_AFTER)
            outcome.status = "failed" if process.returncode else "done"
        except subprocess.TimeoutExpired:
            outcome.status = "cut off"
            outcome.reason = f"it took longer than its {outcome.limit:.0f} s"
        finally:
            _end(process)
    outcome.seconds = round(time.monotonic() - started, 1)
    outcome.records = read_records(file)
    outcome.output = log.read_text(errors="replace")[-OUTPUT_CHARACTERS:]
    if outcome.status == "failed":
        lines = outcome.output.strip().splitlines() or [f"status {process.returncode}"]
        errors = [each["error"] for each in outcome.records.get("failure", [])]
        outcome.reason = (errors or lines)[-1]


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a step's process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def _environment() -> dict[str, str]:
    """The environment of a step: our own source, and no look at a model hub."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


def _version() -> str:
    try:
        return version("dandelion")
    except PackageNotFoundError:  # the source is on the path and is not installed
        return "of this source"
