"""The time that a run still needs, by the times of its newest rounds.

The first round of a process is no measure: it also imports, compiles and reads data. Rounds after
which the model is evaluated take longer than others, so the two kinds are counted apart.
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import median

NEWEST = 15  # rounds of a kind whose median is taken


@dataclass
class TimeLeft:
    """Estimates the seconds that the rounds to come will take.

    Attributes:
        rounds: of the run.
        interval: rounds from one evaluation to the next; 0: only the last round is evaluated.
    """

    rounds: int
    interval: int
    _before: tuple[int, float] | None = None  # round and time of the last call
    _first: float | None = None  # seconds of the first round that was seen
    _plain: deque[float] = field(default_factory=lambda: deque(maxlen=NEWEST))
    _evaluated: deque[float] = field(default_factory=lambda: deque(maxlen=NEWEST))

    @property
    def is_bound(self) -> bool:
        """Whether the first round is all that is known, which takes longer than others."""
        return not self._plain and not self._evaluated

    def note(self, round_: int, now: float) -> None:
        """Note that a round, evaluation included, ended at ``now`` seconds of some clock.

        The round of the first call was not seen: its end is where counting begins.
        """
        before, self._before = self._before, (round_, now)
        if before is None or before[0] >= round_:
            return
        seconds = (now - before[1]) / (round_ - before[0])
        if self._first is None:
            self._first = seconds
        elif self._is_evaluated(round_):
            self._evaluated.append(seconds)
        else:
            self._plain.append(seconds)

    def seconds(self) -> float | None:
        """What the rounds to come will take; None before a round was seen, or after the last."""
        if self._before is None or self._first is None or self._before[0] >= self.rounds:
            return None
        coming = range(self._before[0] + 1, self.rounds + 1)
        evaluated = sum(map(self._is_evaluated, coming))
        # Until one kind was seen, the other stands for it.
        plain = median(self._plain or self._evaluated or [self._first])
        return evaluated * median(self._evaluated or [plain]) + (len(coming) - evaluated) * plain

    def _is_evaluated(self, round_: int) -> bool:
        return round_ == self.rounds or (self.interval > 0 and round_ % self.interval == 0)


def time_left_text(left: TimeLeft) -> str:
    """The time left for readers, as ``1:20 left``, a bound as ``< 1:20 left``; empty if unknown."""
    if (seconds := left.seconds()) is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours = f"{minutes // 60}:{minutes % 60:02}" if minutes >= 60 else str(minutes)
    return f"{'< ' * left.is_bound}{hours}:{rest:02} left"
