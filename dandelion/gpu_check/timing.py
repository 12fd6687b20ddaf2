"""Seconds of calls on a device, its peak memory, and the kernels that the time goes to."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import nn

from dandelion.gpu_check.records import StepTask

Calls = Mapping[str, Callable[[], object]]
TOP_KERNELS = 16  # rows of a profile
WARM_UP = 2  # calls that are not counted: the first ones compile and allocate


def describe_machine(device: str) -> dict[str, Any]:
    """Names and versions that figures depend on."""
    import platform
    from os import cpu_count

    machine: dict[str, Any] = {
        "device": device,
        "cores": cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        machine["card"] = properties.name
        machine["memory"] = properties.total_memory
        machine["multiprocessors"] = properties.multi_processor_count
    return machine


def wait_for(device: str) -> None:
    """Return when the device has done all that it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def take_turns(calls: Calls, device: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of every call, ``repeats`` times in turn, each until the device is done.

    The same position in two lists is the same turn.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + WARM_UP):
        for name, call in calls.items():
            wait_for(device)
            start = time.perf_counter()
            call()
            wait_for(device)
            if turn >= WARM_UP:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Mapping[str, list[float]], name: str, base: str) -> float:
    """The median over turns of one call's seconds over another's."""
    return median(a / b for a, b in zip(times[name], times[base], strict=True))


def peak_bytes(call: Callable[[], object], device: str) -> int | None:
    """The most memory of a card during a call; None on a CPU, which does not count it."""
    if not device.startswith("cuda"):
        return None
    wait_for(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    wait_for(device)
    return int(torch.cuda.max_memory_allocated(device))


def profile(task: StepTask, title: str, call: Callable[[], object]) -> None:
    """Record which kernels a call's time goes to, the longest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * task.on_card
    with watch(activities=kinds) as watched:
        call()
        wait_for(task.device)
    averages = list(watched.key_averages())
    own = [each for each in averages if str(each.device_type).endswith("CUDA")] or averages
    key = "self_device_time_total" if task.on_card else "self_cpu_time_total"
    rows = sorted(own, key=lambda each: -getattr(each, key))[:TOP_KERNELS]
    kernels = [
        {"name": row.key, "calls": row.count, "ms": round(getattr(row, key) / 1e3, 4)}
        for row in rows
    ]
    host = sum(each.self_cpu_time_total for each in averages) / 1e3
    total = sum(getattr(each, key) for each in own) / 1e3
    task.record(
        "profile",
        {"title": title, "kernels": kernels, "host ms": round(host, 3), "ms": round(total, 3)},
    )


def fill_(module: nn.Module, seed: int = 1) -> None:
    """Give a GPT-2 plausible weights on its own device, quickly: figures need no known ones."""
    torch.manual_seed(seed)
    for name, parameter in module.named_parameters():
        weights = parameter.detach()
        if weights.dim() > 1:
            weights.normal_(0.0, 0.02)
        else:
            weights.fill_(float(".ln_" in name and name.endswith("weight")))
