"""The errors that dandelion raises; a message says what was expected and what came instead."""

from collections.abc import Iterable


class DandelionError(Exception):
    """Base of every error that a user or a peer can cause."""


class ConfigError(DandelionError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class UnknownNameError(ConfigError):
    """A setting names something that no module registered."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}")


class WireError(DandelionError):
    """A peer's bytes cannot be read, or they answer another request."""


class LedgerError(DandelionError):
    """A ledger is missing, corrupt, or of another run; the message names file and row."""


class GapError(DandelionError):
    """A replica was handed a round that does not follow its own."""


class DivergedError(DandelionError):
    """A replica's digest is not the recorded one."""


class SnapshotError(DandelionError):
    """A snapshot or a client's store is damaged or of another run; the message names the file."""


class DataError(DandelionError):
    """Data is missing or does not fit; the message says what to download and where to put it."""


class StalledError(DandelionError):
    """Too many rounds in a row had too few valid replies."""


class WorkerError(DandelionError):
    """A node's resident worker cannot be started, died, or refused a call."""


class PolicyError(DandelionError):
    """A site's operator allows no such request; the message that leaves names the key alone."""

    PREFIX = "refused by policy: "

    def __init__(self, key: str) -> None:
        super().__init__(f"{self.PREFIX}{key}")
        self.key = key


class BudgetError(DandelionError):
    """A site's secret or budget is missing, damaged, rolled back, or open to other users."""


def interruption_of(error: BaseException) -> BaseException | None:
    """The ^C or the exit during which an error was raised, if any.

    A signal raises in the middle of anything, and what is then left half done may fail as well:
    whoever goes on after an error must not go on after this one.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, KeyboardInterrupt | SystemExit):
            return cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return None
