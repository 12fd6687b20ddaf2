"""Federations: the largest model in every mode, and equal digests of sites, processes and cards."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dandelion.bench.memory import estimate, shapes_of
from dandelion.gpu_check.records import StepTask
from shared.base.errors import DandelionError
from shared.base.options import Value

GIB = 2**30
SITES, ROUNDS = 2, 10
MODES: Mapping[str, Mapping[str, Value]] = {
    "fo": {"mode": "fo", "codec": "topk", "topk-fraction": 0.001, "learning-rate": 0.01},
    "zo": {"mode": "zo", "learning-rate": 1e-6},
    "instruct": {
        "mode": "instruct",
        "bp-interval": 5,
        "codec": "topk",
        "topk-fraction": 0.001,
        "learning-rate": 1e-6,
        "bp-learning-rate": 0.01,
    },
    "zo, bfloat16": {"mode": "zo", "learning-rate": 1e-6, "dtype": "bfloat16", "eps": 0.01},
}
LARGE: Mapping[str, Value] = {
    "model": "1B",
    "num-clients": SITES,
    "num-rounds": ROUNDS,
    "dataset": "stdlib",
    "max-samples": 60,
    "partitioner": "iid",
    "block-size": 128,
    "queries": 8,
    "zo-batch-size": 8,
    "bp-batch-size": 4,
    "eval-blocks": 16,
    "eval-interval": 0,
    "snapshot-interval": 0,
    "preflight-rounds": 0,
    "guard-rewinds": 0,
    "save-model": False,
}
SMALL: Mapping[str, Value] = {
    **LARGE,
    "model": "byte-gpt",
    "num-rounds": 3,
    "block-size": 32,
    "queries": 2,
    "max-samples": 20,
}
LEAST_SECONDS = 10.0  # of a step that are kept for its last evaluation
ONE_CARD = "there is one card, two are needed"
PROCESSES = 3  # that replay one ledger on one device at once


class OutOfTimeError(DandelionError):
    """A run is ended between two rounds because the step's time is over."""


def train(task: StepTask, name: str, settings: Mapping[str, Value], device: str = "") -> Path:
    """Train on the task's device, or on others, as long as there is time; return the run folder."""
    from dandelion.engines.local import run_local
    from server.reporting.report import Report
    from shared.training.validate import configure

    folder = task.file.parent / "runs"
    threads = os.cpu_count() if task.on_card else 1
    own = {"threads": threads, "output-dir": str(folder), "run-name": name}
    own["device"] = device or task.device

    times = [time.monotonic()]

    def stop_in_time(report: Report, round_: int) -> None:
        """End the run before a round that would take more time than there is."""
        times.append(time.monotonic())
        task.record("progress", {"what": f"{name}: round {round_}", "left": task.seconds_left()})
        if task.seconds_left() < LEAST_SECONDS + (times[-1] - times[-2]) * (round_ > 0):
            raise OutOfTimeError(f"round {round_}: the step's time is over")

    try:
        return run_local(configure({**settings, **own}), stop_in_time)
    except OutOfTimeError as error:
        task.skip(f"{name}: rounds after this one", str(error))
        return (folder / name).resolve()


def run_large(task: StepTask, mode: str) -> None:
    """Train the largest model in a mode: peak memory beside the estimate, seconds, loss."""
    settings: dict[str, Value] = {**(SMALL if task.tiny else LARGE), **MODES[mode]}
    if settings.get("dtype") == "bfloat16":
        settings["num-clients"] = 1
    started = time.perf_counter()
    folder = train(task, mode.replace(", ", "-"), settings)
    model = str(settings["model"])
    _report_costs(task, f"{model}, {mode}", folder, time.perf_counter() - started)
    if task.on_card:
        _report_memory(task, f"{model}, {mode}", settings)


def _report_costs(task: StepTask, what: str, folder: Path, seconds: float) -> None:
    from server.ledger.reader import LedgerReader
    from server.ledger.run_folder import LEDGER

    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        rounds, evaluations = ledger.metrics(), ledger.evaluations()
        totals = ledger.totals()
    task.row(f"rounds, {what}", len(rounds), "", note=f"{seconds:.0f} s with all set-up")
    if not rounds:
        return
    losses = f"sites' loss {rounds[0].loss:.3f} to {rounds[-1].loss:.3f}"
    held_out = ", ".join(f"{each.loss:.3f} at round {each.round}" for each in evaluations)
    later = [each.seconds for each in rounds[1:]] or [rounds[0].seconds]
    note = f"the first {rounds[0].seconds:.2f} s; {losses}; held-out {held_out}"
    task.row(f"a round, median, {what}", median(later), "s", note=note)
    note = f"{totals.forwards / len(rounds):,.0f} forward passes a round"
    task.row(f"payload up a round, {what}", totals.bytes_up / len(rounds), "B", note=note)


def _report_memory(task: StepTask, what: str, settings: Mapping[str, Any]) -> None:
    """Record the card's peak; server and sites of one process have a replica each."""
    layout, _ = shapes_of(str(settings["model"]))
    expected = estimate(layout, str(settings.get("dtype", "float32")))
    total = torch.cuda.get_device_properties(task.device).total_memory
    known = 2 * expected.replica + expected.query
    note = (
        f"two replicas and a query: {known / GIB:.2f} GiB by 'dandelion models', without "
        f"activations and gradients; the card has {total / GIB:.1f} GiB"
    )
    peak = torch.cuda.max_memory_allocated(task.device)
    task.row(f"peak memory, {what}", peak / GIB, "GiB", at_most=total / GIB, note=note)


def run_together(task: StepTask) -> None:
    """Train with several sites, replay the ledger in processes at once, train on two devices."""
    small = {**SMALL, "num-clients": 3, "num-rounds": 5, "eval-interval": 1}
    folder = train(task, "together", small)
    _replay_at_once(task, folder)
    _train_on_two(task, small, read_digests(folder))


def _train_on_two(task: StepTask, settings: Mapping[str, Value], expected: Sequence[str]) -> None:
    """Train anew with sites of two devices each, which share out a round's directions."""
    pair, reason = two_devices(task.device)
    what = "sites with two devices each give the digests of sites with one"
    if reason:
        return task.skip(what, reason)
    started = time.perf_counter()
    folder = train(task, "two-devices", settings, pair)
    note = f"{pair}, {time.perf_counter() - started:.1f} s with all set-up"
    task.yes_or_no(what, read_digests(folder) == list(expected), note)


def two_devices(device: str) -> tuple[str, str]:
    """A device and another of its kind as the setting ``device``, or why there is no other."""
    if device == "cpu":
        return "cpu,cpu", ""
    first, cards = torch.device(device).index or 0, torch.cuda.device_count()
    if cards < 2:
        return "", ONE_CARD
    return f"cuda:{first},{(first + 1) % cards}", ""


def _replay_at_once(task: StepTask, folder: Path) -> None:
    started = time.perf_counter()
    count = 2 if task.tiny else PROCESSES
    replays = [_start_replay(folder, task.device) for _ in range(count)]
    outputs = [process.communicate(timeout=max(1.0, task.seconds_left())) for process in replays]
    seconds = time.perf_counter() - started
    for (_, errors), process in zip(outputs, replays, strict=True):
        if process.returncode:
            raise RuntimeError(f"a replay failed: {errors.splitlines()[-1:]}")
    digests = {out.splitlines()[-1] for out, _ in outputs}
    recorded = read_digests(folder)
    note = f"{seconds:.1f} s"
    equal = len(digests) == 1
    task.yes_or_no(f"{count} processes on {task.device} replay to equal digests", equal, note)
    task.yes_or_no("these digests are the server's", digests == {json.dumps(recorded)}, note)
    here = replay_digests(folder, "cpu")
    task.yes_or_no("the CPU replays the same ledger to the same digests", here == recorded)


def _start_replay(folder: Path, device: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", __spec__.name, str(folder), device]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def read_digests(folder: Path) -> list[str]:
    """The digests that a run's ledger has, of every round in order."""
    from server.ledger.reader import LedgerReader
    from server.ledger.run_folder import LEDGER

    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        digests = [ledger.digest(round_) for round_ in range(1, ledger.last_round + 1)]
    return ["" if digest is None else digest.hex() for digest in digests]


def replay_digests(folder: Path, device: str) -> list[str]:
    """The digests that a device computes from a run's ledger, of every round in order."""
    from server.ledger.reader import LedgerReader
    from server.ledger.run_folder import LEDGER, read_config
    from shared.protocol.entry import Entry
    from shared.training.oracle import Oracle

    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        replica = Oracle.of(read_config(ledger).replace(device=device)).replica
        payloads = ledger.payloads(0, ledger.last_round)
    entries = [Entry.decode(payload) for payload in payloads]
    return [digest.hex() for _, digest in replica.apply_with_digests(entries)]


if __name__ == "__main__":
    print(json.dumps(replay_digests(Path(sys.argv[1]), sys.argv[2])))
