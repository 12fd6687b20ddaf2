"""What each random number is drawn for: keys of the counter-based generator."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Key:
    """Names one direction: number ``index`` of ``slot`` in ``round`` of the run seeded ``seed``.

    ``seed`` has 64 bits, the other three 32 bits each; they go into separate counter words of the
    generator, so no two keys can meet. Slot 0 is every site's; other slots are a site's own.
    """

    seed: int
    round: int
    slot: int
    index: int
