"""``python -m dandelion.gpu_check``: the check without the command line's own packages.

``dandelion gpu-check`` has the same options, and needs typer and rich beside them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dandelion.gpu_check.runner import MINUTES, check
from dandelion.gpu_check.steps import STEPS
from shared.base.errors import DandelionError


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; return the exit status.

    0: every step was done or has a reason not to be; 1: one failed, was cut off, or found bits that
    differ; 2: the arguments cannot work. Goals of speed are in the table alone.
    """
    given = _parser().parse_args(arguments)
    try:
        if given.replay:
            return replay_elsewhere(given.replay, given.device)
        report = check(
            given.out, given.minutes, given.device, given.tiny, given.steps,
            print_note if given.json else print,
        )  # fmt: skip
    except DandelionError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print((given.out / ("results.json" if given.json else "table.md")).read_text())
    return int(not all(each.is_sound for each in report.outcomes))


def print_note(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr)


def replay_elsewhere(file: Path, device: str) -> int:
    """Replay the ledgers of another machine's ``recordings.json`` on a device of this one."""
    from dandelion.gpu_check.recordings import first_difference, read

    faults = 0
    for recording in read(file):
        fault = first_difference(recording, device)
        print(f"{recording.case}, made on {recording.device}: {fault or 'equal digests'}")
        faults += bool(fault)
    return int(faults > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m dandelion.gpu_check", description="Try the system on a card."
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of the results")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all steps together")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ... or cpu")
    parser.add_argument("--tiny", action="store_true", help="small sizes that only try the command")
    names = ", ".join(step.name for step in STEPS)
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument("--steps", default="", help=f"names with commas: {names}")
    parser.add_argument("--replay", type=Path, help="a recordings.json of another machine")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
