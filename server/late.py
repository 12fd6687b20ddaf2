"""Replies that come after their round was closed: counted and refused, never used."""

from server.exchange import transfer
from server.flight import Flight
from server.records import Refusal
from shared.traffic import Transfer

MOST_CLOSED = 8  # rounds whose late replies are still looked for


class Late:
    """Looks for what closed rounds did not get in time."""

    def __init__(self) -> None:
        self._closed: list[Flight] = []

    def close(self, flight: Flight) -> None:
        """Remember a round whose time is over, if a reply of it is still to come."""
        if flight.exchange.unanswered:
            self._closed = [*self._closed, flight][-MOST_CLOSED:]

    def take(self) -> tuple[list[Transfer], list[Refusal]]:
        """What has come since: its bytes, and one refusal each; errors were counted as missing."""
        transfers: list[Transfer] = []
        refusals: list[Refusal] = []
        for closed in self._closed:
            for reply in closed.exchange.late():
                name = closed.name_of(reply)
                transfers.append(transfer(reply, closed.round, name, "up"))
                if not reply.has_error():
                    detail = f"round {closed.round} did without it"
                    refusals.append(Refusal(closed.round, name, "late", detail))
        self._closed = [closed for closed in self._closed if closed.exchange.unanswered]
        return transfers, refusals
