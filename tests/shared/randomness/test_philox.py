"""The generator's words are Random123's, and every part of a key counts."""

import numpy as np
import pytest

from shared.randomness.philox import philox4x32, words
from shared.randomness.streams import Key

ONES = 0xFFFFFFFF
KNOWN = {  # Random123, tests/kat_vectors: philox4x32 10 rounds; counter, key, answer
    "zeros": ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_words_are_the_known_answers(name):
    counter, (low, high), answer = KNOWN[name]
    drawn = philox4x32(np.array([counter], np.uint32), low | high << 32)
    assert drawn.dtype == np.uint32
    assert drawn.tolist() == [list(answer)]


def test_a_row_does_not_depend_on_its_neighbours():
    counters = np.arange(400, dtype=np.uint32).reshape(100, 4)
    together = philox4x32(counters, 7)
    alone = [philox4x32(counters[i : i + 1], 7)[0] for i in range(100)]
    assert np.array_equal(together, alone)


def test_the_counter_is_block_index_round_slot():
    key = Key(seed=2**63 + 5, round=3, slot=4, index=2)
    expected = philox4x32(np.array([[9, 2, 3, 4], [10, 2, 3, 4]], np.uint32), key.seed)
    assert np.array_equal(words(key, range(9, 11)), expected)
    assert np.array_equal(words(key, np.array([10, 9])), expected[::-1])


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_of_more_than_64_bits_is_refused(seed):
    with pytest.raises(ValueError, match="64 bits"):
        words(Key(seed, 1, 0, 0), range(1))


@pytest.mark.parametrize("key", [Key(1, 2**32, 0, 0), Key(1, 0, -1, 0), Key(1, 0, 0, 2**32)])
def test_a_part_of_more_than_32_bits_is_refused(key):
    with pytest.raises(OverflowError):
        words(key, range(1))
