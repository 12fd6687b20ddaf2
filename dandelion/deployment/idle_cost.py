"""What a site holds while it waits for messages: its programs one by one, Flower's and ours.

A program is measured by what it imports before its first message, in a process of its own. Threads
and open connections come on top, some MB each.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dandelion.bench.rows import BenchRow
from dandelion.deployment.deploy_home import CLIENT_APP_MODULES
from shared.base.errors import ConfigError

MEMORY = Path("/proc/self/smaps_rollup")  # of Linux: how much is resident, and how much is its own
KIB, MIB = 1 << 10, 1 << 20
ROOT = Path(__file__).parents[2]
CODE = """
import importlib, json, sys, time
for name in sys.argv[2:]:
    importlib.import_module(name)
print(json.dumps([open(sys.argv[1]).read(), time.process_time()]))
"""
OURS = ("dandelion.cli.app", "dandelion.deployment.supervisor", "client.guard.process")
FORKED = tuple(CLIENT_APP_MODULES.split(","))
PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "Python alone": (),
    "client join, ours": OURS,
    "client guard, ours": OURS,
    "SuperNode, Flower's": ("flwr.supernode.cli", "flwr.supernode.start_client_internal"),
    "SuperExec, Flower's": ("flwr.supercore.superexec.run_superexec", "flwr.supernode.cli"),
    "what ClientApps are forked from, Flower's": FORKED,
    "a ClientApp with our code": (*FORKED, "client.app"),
}


def idle_cost() -> list[BenchRow]:
    """Measure every program of a site in a process of its own.

    Seconds are those of the processor until all is imported; the ratio is the resident memory's to
    an interpreter's alone.

    Raises:
        ConfigError: this system does not say what a process holds.
    """
    if not MEMORY.exists():
        raise ConfigError(f"bench idle: {MEMORY} expected, as Linux has it")
    measured = {name: measure(modules) for name, modules in PROGRAMS.items()}
    alone = next(iter(measured.values()))["resident"]
    return [
        BenchRow(
            name,
            each["seconds"],
            each["resident"] / alone,
            f"{each['resident'] / MIB:.0f} MiB resident, {each['own'] / MIB:.0f} MiB its own",
        )
        for name, each in measured.items()
    ]


def measure(modules: Sequence[str]) -> dict[str, float]:
    """Import modules in a new interpreter; its bytes, and seconds of the processor."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(MEMORY), *modules],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    text, seconds = json.loads(done.stdout.splitlines()[-1])
    lines = (line.split() for line in text.splitlines()[1:])
    sizes = {words[0].rstrip(":"): int(words[1]) * KIB for words in lines}
    own = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return {"resident": sizes["Rss"], "own": own, "seconds": seconds}
