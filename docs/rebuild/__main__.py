"""All rounds of a ledger in order, rewinds included, and what was compared."""

import sys
from pathlib import Path

from .entries import Entry, read_ledger
from .updates import Run, State
from .words import LayoutError


def reach(run: Run, entries: list[Entry], to: int) -> State:
    """The state of a round, from the initial model along the rounds that lead there."""
    path: list[Entry] = []
    while to:
        entry = entries[to - 1]
        path, to = [*path, entry], entry.follows
    state = run.start()
    for entry in reversed(path):
        take_(run, state, entry)
    return state


def take_(run: Run, state: State, entry: Entry) -> None:
    """Go on by one entry."""
    if entry.back_to is None:
        run.step_(state, entry)
    state.round = entry.round


def rebuild(path: Path) -> list[tuple[int, bytes, bytes | None]]:
    """Round, rebuilt digest and recorded digest of the initial model and of every round.

    Raises:
        LayoutError: the file is no ledger, or its run has a part that is not on the page.
    """
    settings, entries, recorded = read_ledger(path)
    run = Run.of(settings)
    state = run.start()
    rows = [(0, run.digest(state), recorded.get(0))]
    for entry in entries:
        if entry.follows != state.round:
            state = reach(run, entries, entry.follows)
        take_(run, state, entry)
        rows.append((entry.round, run.digest(state), recorded.get(entry.round)))
    return rows


def main(arguments: list[str]) -> int:
    """Print what was compared; return 0 if all recorded digests are those of the parameters."""
    if len(arguments) != 1:
        print("usage: python -m docs.rebuild LEDGER", file=sys.stderr)
        return 2
    try:
        rows = rebuild(Path(arguments[0]))
    except LayoutError as error:
        print(error, file=sys.stderr)
        return 2
    compared = [(number, ours, theirs) for number, ours, theirs in rows if theirs is not None]
    for number, ours, theirs in compared:
        if ours != theirs:
            print(f"round {number}: {theirs.hex()} is recorded, {ours.hex()} was rebuilt")
            return 1
    print(f"{len(rows) - 1} rounds rebuilt, {len(compared)} digests compared: all equal")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
