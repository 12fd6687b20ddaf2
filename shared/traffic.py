"""Every byte, counted where it is made: per round, site, direction and kind."""

from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down"]
Kind = Literal["scalars", "gradient", "snapshot", "control"]


@dataclass(frozen=True, slots=True)
class Transfer:
    """One message's bytes: as encoded by us, and as serialised with Flower's envelope."""

    round: int
    site: str
    direction: Direction  # up: from a site to the server
    kind: Kind  # scalars: loss differences and entries; control: introductions, refusals
    payload: int
    message: int
