"""What a message took on its way: counted by the server, kept in the ledger.

Who only reads a ledger needs these names, and none of Flower.
"""

from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down"]
Kind = Literal["scalars", "gradient", "snapshot", "control"]


@dataclass(frozen=True, slots=True)
class Transfer:
    """The bytes of one message: of our payload, and of the message as Flower serialises it."""

    round: int
    site: str
    direction: Direction  # up: from a site to the server
    kind: Kind  # scalars: loss differences and entries; control: introductions and refusals
    payload: int
    message: int
