"""The table of random streams: which counters of the generator belong to which purpose.

The generator (``philox``) is a function of a 64-bit seed and a counter of four 32-bit words. A key
fixes three of the words; the fourth counts the blocks that are drawn under it:

    | block | index | round | slot |

Streams never share a counter, because any two have disjoint ranges in at least one word. With
R = 2**30 (every round of a run is below it) and S = 2**31 (every site's slot is below it):

    stream            round word    slot word    index word
    DIRECTIONS        round         slot         number of the direction, below 2**20
    PROBE_DIRECTIONS  1 + trial     0            2**20 + number of the direction
    QUERY_BATCHES     round >= 1    S + slot     number of the batch, below 2**16
    GRADIENT_BATCHES  round >= 1    S + slot     2**16 + local step
    MODEL_WEIGHTS     0             S            number of the tensor, below 2**20
    ADAPTER_WEIGHTS   0             S            2**20 + number of the tensor, below 2**21
    HEAD_WEIGHTS      0             S            2**21 + number of the tensor
    PARTITION         0             S + 1        attempt
    ROUNDING          R + round     slot         number of the step's first direction
    MASKS             2R + round    slot         number of the direction, below 2**31
    ROUND_SIGNS       2R + round    slot         2**31 + (index of a direction) // 2**20
    COHORT            3R + round    0            attempt

Slot 0 is the one that all sites share, every other slot is one site's own. A new purpose is a new
row here, a member of ``Stream`` and a function: no other module of a run makes a key.
"""

from dataclasses import dataclass
from enum import Enum, unique

SHARED_SLOT = 0
ROUNDS, SLOTS, WORDS = 1 << 30, 1 << 31, 1 << 32  # R, S, and the values of a counter word
FIRST_PROBE, FIRST_GRADIENT = 1 << 20, 1 << 16  # indexes; directions and batches of a run are below
FIRST_ADAPTER, FIRST_HEAD = 1 << 20, 1 << 21  # indexes
FIRST_SIGNS = 1 << 31  # index; masks are below


@dataclass(frozen=True, slots=True)
class Key:
    """Names a sequence of blocks of random words in the run seeded ``seed``.

    ``seed`` has 64 bits, the other three have 32 bits each. They are separate inputs of the
    generator, so no two keys draw the same block.
    """

    seed: int
    round: int
    slot: int
    index: int


@unique
class Stream(Enum):
    """The ranges of the round, slot and index words that belong to one purpose."""

    DIRECTIONS = (range(ROUNDS), range(SLOTS), range(FIRST_PROBE))
    PROBE_DIRECTIONS = (range(1, ROUNDS), range(1), range(FIRST_PROBE, WORDS))
    QUERY_BATCHES = (range(1, ROUNDS), range(SLOTS, WORDS), range(FIRST_GRADIENT))
    GRADIENT_BATCHES = (range(1, ROUNDS), range(SLOTS, WORDS), range(FIRST_GRADIENT, WORDS))
    MODEL_WEIGHTS = (range(1), range(SLOTS, SLOTS + 1), range(FIRST_ADAPTER))
    ADAPTER_WEIGHTS = (range(1), range(SLOTS, SLOTS + 1), range(FIRST_ADAPTER, FIRST_HEAD))
    HEAD_WEIGHTS = (range(1), range(SLOTS, SLOTS + 1), range(FIRST_HEAD, WORDS))
    PARTITION = (range(1), range(SLOTS + 1, SLOTS + 2), range(WORDS))
    ROUNDING = (range(ROUNDS, 2 * ROUNDS), range(SLOTS), range(WORDS))
    MASKS = (range(2 * ROUNDS, 3 * ROUNDS), range(SLOTS), range(FIRST_SIGNS))
    ROUND_SIGNS = (range(2 * ROUNDS, 3 * ROUNDS), range(SLOTS), range(FIRST_SIGNS, WORDS))
    COHORT = (range(3 * ROUNDS, 4 * ROUNDS), range(1), range(WORDS))

    def key(self, seed: int, round_word: int, slot_word: int, index_word: int) -> Key:
        """Return the key of these words.

        Raises:
            ValueError: a word is out of range, so another stream could have the same counter.
        """
        words = (round_word, slot_word, index_word)
        names = ("round", "slot", "index")
        for name, word, allowed in zip(names, words, self.value, strict=True):
            if word not in allowed:
                raise ValueError(f"{self.name}: a {name} word in {allowed} expected, got {word}")
        return Key(seed, *words)


def direction_keys(seed: int, round_: int, slot: int, first: int, count: int) -> list[Key]:
    """Keys of the directions ``first`` to ``first + count`` of a slot, in order of application."""
    numbers = range(first, first + count)
    return [Stream.DIRECTIONS.key(seed, round_, slot, number) for number in numbers]


def probe_keys(seed: int, count: int, trial: int = 0) -> list[Key]:
    """Keys of the first ``count`` directions of a preflight's trial; trial 0 is none's."""
    numbers = range(FIRST_PROBE, FIRST_PROBE + count)
    return [Stream.PROBE_DIRECTIONS.key(seed, 1 + trial, SHARED_SLOT, n) for n in numbers]


def query_batch_key(seed: int, round_: int, slot: int, number: int) -> Key:
    """Key of the examples that a site measures loss differences on."""
    return Stream.QUERY_BATCHES.key(seed, round_, SLOTS + slot, number)


def gradient_batch_key(seed: int, round_: int, slot: int, step: int) -> Key:
    """Key of the examples that a site backpropagates through in a local step."""
    return Stream.GRADIENT_BATCHES.key(seed, round_, SLOTS + slot, FIRST_GRADIENT + step)


def model_weights_key(seed: int, tensor: int) -> Key:
    """Key of the initial weights of a model's tensor number ``tensor``."""
    return Stream.MODEL_WEIGHTS.key(seed, 0, SLOTS, tensor)


def adapter_weights_key(seed: int, tensor: int) -> Key:
    """Key of the initial weights of an adapted model's tensor number ``tensor``."""
    return Stream.ADAPTER_WEIGHTS.key(seed, 0, SLOTS, FIRST_ADAPTER + tensor)


def head_weights_key(seed: int, tensor: int) -> Key:
    """Key of the initial weights of a tensor that a pretrained model lacks, such as a new head."""
    return Stream.HEAD_WEIGHTS.key(seed, 0, SLOTS, FIRST_HEAD + tensor)


def partition_key(seed: int, attempt: int) -> Key:
    """Key of an attempt to partition the data set."""
    return Stream.PARTITION.key(seed, 0, SLOTS + 1, attempt)


def rounding_key(seed: int, round_: int, slot: int, index: int) -> Key:
    """Key of the bits that round the parameters after the step whose first direction is given."""
    return Stream.ROUNDING.key(seed, ROUNDS + round_, slot, index)


def mask_key(direction: Key) -> Key:
    """Key of the mask that turns a guide into this direction."""
    words = (2 * ROUNDS + direction.round, direction.slot, direction.index)
    return Stream.MASKS.key(direction.seed, *words)


def number_of(direction: Key) -> int:
    """The number of a direction of a run or of a preflight among those of its round and slot."""
    return direction.index % FIRST_PROBE


def round_signs_key(direction: Key) -> Key:
    """Key of the signs that this direction shares with all others of its round and slot.

    Directions of a preflight share others than those of a run.
    """
    index = FIRST_SIGNS + direction.index // FIRST_PROBE
    words = (2 * ROUNDS + direction.round, direction.slot, index)
    return Stream.ROUND_SIGNS.key(direction.seed, *words)


def cohort_key(seed: int, round_: int, attempt: int) -> Key:
    """Key of the draw of a round's cohort."""
    return Stream.COHORT.key(seed, 3 * ROUNDS + round_, SHARED_SLOT, attempt)
