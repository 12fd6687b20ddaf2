"""Equal bits on every device: kernels against their definition, and ledgers replayed both ways."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from dandelion.gpu_check import recordings
from dandelion.gpu_check.records import StepTask, try_each
from shared.base.flat import Layout
from shared.directions import DIRECTIONS
from shared.directions.rademacher import signs
from shared.optimizers import OPTIMIZERS
from shared.optimizers.gradient import ZerothOrderGradient
from shared.randomness.streams import Key

LAYOUT = Layout.of([("matrix", (300, 700)), ("bias", (70,)), ("wide", (3, 7000))])
KEYS = [Key(2**63 + 11, 5, 3, k) for k in range(5)]
SCALES = [0.3, -7.7, 1e-4, 2.0, -0.1]
OPTIMIZER_NAMES = ("sgd", "adam", "mudamw")
TESTS = Path(__file__).resolve().parents[2] / "tests"
GPU_TESTS = (
    "shared/directions/test_triton.py",
    "shared/optimizers/test_optimizers.py",
    "shared/captured/test_passes.py",
    "shared/codecs/test_codecs.py",
)  # files with a test of mark gpu
LAST_LINES = 12  # of pytest's output that are kept


def run(task: StepTask) -> None:
    """Compare the device with the CPU, and with what was recorded on another machine's CPU."""
    parts: dict[str, Callable[[], None]] = {
        "sums of signs": partial(_sums, task),
        "perturbed vectors and rows": partial(_perturb, task),
        "sums of both families": partial(_families, task),
        **{f"steps of {name}": partial(_steps, task, name) for name in OPTIMIZER_NAMES},
    }
    for recording in recordings.read():
        parts[f"recorded: {recording.case}"] = partial(_replay, task, recording)
    for case in list(recordings.CASES)[: 2 if task.tiny else None]:
        parts[f"made here: {case}"] = partial(_make, task, case)
    parts["pytest -m gpu"] = partial(_pytest, task)
    try_each(task, parts)


def _sums(task: StepTask) -> None:
    """Five directions added on the device equal the sum that the definition gives, in order."""
    flat = torch.linspace(-2, 2, LAYOUT.size)
    addresses = np.arange(LAYOUT.size)
    expected = flat.numpy().copy()
    for key, scale in zip(KEYS, SCALES, strict=True):
        expected += np.float32(scale) * signs(key, addresses)
    own = flat.to(task.device)
    DIRECTIONS["rademacher"](LAYOUT).add_to_(own, KEYS, SCALES)
    equal = np.array_equal(own.cpu().numpy(), expected)
    task.yes_or_no("sums of signs are those of the definition", equal)
    zeros = np.full(LAYOUT.size, -0.0, np.float32)
    own = torch.from_numpy(zeros.copy()).to(task.device)
    DIRECTIONS["rademacher"](LAYOUT).add_to_(own, KEYS[:1], [0.0])
    expected = zeros + np.float32(0) * signs(KEYS[0], addresses)
    equal = own.cpu().numpy().tobytes() == expected.tobytes()
    task.yes_or_no("a coefficient of 0 keeps the sign of a zero", equal)


def _perturb(task: StepTask) -> None:
    """A slice that is perturbed, and rows that are looked up, equal the definition."""
    start, width = 300, 700
    source = torch.linspace(-1, 1, 5000, device=task.device)
    out, family = torch.empty_like(source), DIRECTIONS["rademacher"](LAYOUT)
    family.perturb_(out, source, start, KEYS[0], 0.3)
    z = signs(KEYS[0], start + np.arange(5000))
    expected = source.cpu().numpy() + np.float32(0.3) * z
    equal = np.array_equal(out.cpu().numpy(), expected)
    task.yes_or_no("a perturbed slice is that of the definition", equal)
    ids = torch.tensor([5, 0, 299, 5], device=task.device)
    rows = torch.ones(4, width, device=task.device)
    family.add_rows_(rows, ids, 0, KEYS[0], 0.3)
    addresses = ids.cpu().numpy()[:, None] * width + np.arange(width)
    z = signs(KEYS[0], addresses.ravel()).reshape(4, width)
    equal = np.array_equal(rows.cpu().numpy(), 1 + np.float32(0.3) * z)
    task.yes_or_no("perturbed rows are those of the definition", equal)


def _families(task: StepTask) -> None:
    """Exact families add the same numbers on the device and on the CPU."""
    for name in ("rademacher", "hadamard", "lowrank"):
        family, vectors = DIRECTIONS[name](LAYOUT), []
        for device in ("cpu", task.device):
            vector = torch.linspace(-2, 2, LAYOUT.size).to(device)
            family.add_to_(vector, KEYS, SCALES)
            LAYOUT.clear_padding_(vector)
            vectors.append(vector.cpu())
        task.yes_or_no(f"{name} adds the numbers of the CPU", torch.equal(*vectors))


def _steps(task: StepTask, name: str) -> None:
    """Four steps of an optimizer leave the same numbers on the device and on the CPU."""
    directions, vectors = DIRECTIONS["rademacher"](LAYOUT), []
    for device in ("cpu", task.device):
        flat = torch.linspace(-2, 2, LAYOUT.size).to(device)
        optimizer = OPTIMIZERS[name](LAYOUT, flat.device)
        for round_ in range(1, 5):
            keys = [Key(7, round_, 0, k) for k in range(len(SCALES))]
            optimizer.step_(flat, ZerothOrderGradient(directions, keys, SCALES), 1e-2)
            LAYOUT.clear_padding_(flat)
        vectors.append(flat.cpu())
    task.yes_or_no(f"four steps of {name} are those of the CPU", torch.equal(*vectors))


def _replay(task: StepTask, recording: recordings.Recording) -> None:
    fault = recordings.first_difference(recording, task.device)
    what = f"a ledger of a {recording.device} replayed on {task.device}: {recording.case}"
    task.yes_or_no(what, not fault, fault)


def _make(task: StepTask, case: str) -> None:
    """Make a ledger on the device, keep it for other machines, and replay it on the CPU here."""
    recording = recordings.make(case, task.device)
    task.record("recording", vars(recording))
    fault = recordings.first_difference(recording, "cpu")
    what = f"a ledger of {task.device} replayed on the CPU: {case}"
    task.yes_or_no(what, not fault, fault)


def _pytest(task: StepTask) -> None:
    """Run the tests that need a card, if they and pytest are there."""
    what = "pytest -m gpu"
    if not task.on_card:
        return task.skip(what, f"needs a CUDA device, got {task.device}")
    if find_spec("pytest") is None or not TESTS.is_dir():
        return task.skip(what, f"needs pytest and the tests in {TESTS}")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(str(TESTS / file) for file in GPU_TESTS)],
        cwd=TESTS.parent, capture_output=True, text=True, check=False,
        timeout=max(1.0, task.seconds_left()),
    )  # fmt: skip
    tail = "\n".join((done.stdout + done.stderr).splitlines()[-LAST_LINES:])
    task.record("log", {"title": what, "text": tail})
    task.yes_or_no(what, done.returncode == 0, tail.splitlines()[-1] if tail else "")
    return None
