"""The steps of the check in their order, what each needs, and the process that does one."""

import argparse
import faulthandler
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from dandelion.gpu_check.records import StepTask
from shared.base.errors import UnknownNameError
from shared.packages.package import CARRIERS, is_cached

BASIC = ("torch", "numpy")
KERNELS, MODELS, FEDERATION = ("numba",), ("transformers", "xxhash", "numba"), ("flwr",)


@dataclass(frozen=True)
class CheckStep:
    """A part of the check that has a process and a time limit of its own."""

    name: str
    title: str
    module: str  # of this folder
    share: float  # of the time
    needs: Sequence[str] = ()  # modules beside torch and numpy
    carriers: Sequence[str] = ()  # packages that are downloaded once, by name
    argument: str = ""
    function: str = "run"

    def missing(self, tiny: bool) -> str:
        """Say what this step needs and is not here, or an empty string."""
        absent = [name for name in (*BASIC, *self.needs) if find_spec(name) is None]
        if absent:
            return f"needs {', '.join(absent)}, not installed here"
        carriers = () if tiny else self.carriers
        if unread := [name for name in carriers if not is_cached(CARRIERS[name])]:
            files = ", ".join(CARRIERS[name].file for name in unread)
            folder = CARRIERS[unread[0]].by_hand.parent
            return f"needs {files} in {folder}: see deploy/gpu, or train with it once"
        return ""

    def load(self) -> Callable[[StepTask], None]:
        """Import the step's function."""
        module = import_module(f"dandelion.gpu_check.{self.module}")
        function = getattr(module, self.function)
        return partial(function, mode=self.argument) if self.argument else function


def _large(mode: str, share: float) -> CheckStep:
    return CheckStep(
        f"1b-{mode.replace(', ', '-')}", f"1 B parameters, mode {mode}", "federations", share,
        (*MODELS, *FEDERATION), ("gpt2-tokenizer",), mode, "run_large",
    )  # fmt: skip


STEPS = (
    CheckStep("bits", "Bits", "bits", 1.5, MODELS),
    CheckStep("directions", "Directions", "directions", 1.0, KERNELS),
    CheckStep("query", "A query over two plain forwards", "queries", 2.5, MODELS),
    CheckStep("batched", "Batched queries", "queries", 1.2, MODELS, function="run_batched"),
    _large("fo", 1.0),
    _large("zo", 0.7),
    _large("instruct", 0.8),
    _large("zo, bfloat16", 0.5),
    CheckStep("learning", "Learning", "learning", 3.0, (*MODELS, *FEDERATION),
              ("smollm2", "rotten-tomatoes")),
    CheckStep("together", "Several sites on one card, and sites on two", "federations", 0.4,
              (*MODELS, *FEDERATION), (), "", "run_together"),
)  # fmt: skip


def choose(names: str) -> list[CheckStep]:
    """The steps of these names, with commas, in the order of ``STEPS``; all if it is empty.

    Raises:
        UnknownNameError: there is no such step.
    """
    known = {step.name: step for step in STEPS}
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(known)
    for name in wanted:
        if name not in known:
            raise UnknownNameError("step", name, known)
    return [step for step in STEPS if step.name in wanted]


def main(arguments: Sequence[str]) -> None:
    """Do one step in this process, which the check started."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step")
    parser.add_argument("file", type=Path)
    parser.add_argument("device")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(arguments)
    (step,) = choose(given.step)
    deadline = time.monotonic() + given.seconds
    do_step(step, StepTask(given.device, given.tiny, given.file, deadline))


def do_step(step: CheckStep, task: StepTask) -> None:
    """Record the machine, then do the step; an error ends in the log, with its traceback."""
    import torch

    from dandelion.gpu_check.timing import describe_machine

    if not task.on_card:
        torch.set_num_threads(1)  # two on a machine that is busy take turns, and crawl
    task.record("machine", describe_machine(task.device))
    faulthandler.dump_traceback_later(max(1.0, task.seconds_left() - 1))  # where it was, if cut off
    try:
        step.load()(task)
    except Exception as error:  # the process boundary: the check goes on with the next step
        task.record("failure", {"what": step.title, "error": f"{type(error).__name__}: {error}"})
        task.record("log", {"title": step.title, "text": traceback.format_exc()})
        raise SystemExit(1) from error
    finally:
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(sys.argv[1:])
