"""How long an answer is waited for before its request counts as lost and is sent once more."""

from dataclasses import dataclass, field

MARGIN = 4  # times the longest answer of the same node so far


@dataclass
class Patience:
    """What a cable or a process that broke has swallowed never comes: Flower sends nothing twice.

    A node that has answered before is asked again after ``least`` seconds, or MARGIN times its
    longest answer where that is more, then after twice as long, and so on. A request that is there
    twice is answered with the same numbers, of which the first count.
    """

    least: float  # 0: nobody is asked again
    longest: dict[int, float] = field(default_factory=dict)  # seconds, by node id

    def note(self, node_id: int, seconds: float) -> None:
        """An answer took so long."""
        self.longest[node_id] = max(seconds, self.longest.get(node_id, 0.0))

    def is_over(self, node_id: int, seconds: float, times: int) -> bool:
        """Whether a node that was asked so long ago, for the 1 + ``times``-th time, is asked again.

        Nobody knows how long the first answer takes, with a model and data to be made before it.
        """
        longest = self.longest.get(node_id)
        if longest is None or not self.least:
            return False
        return seconds > max(self.least, MARGIN * longest) * (1 << times)
