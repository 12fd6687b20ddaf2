"""An entry comes back from its bytes as it went in, or a WireError says why not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base.errors import WireError
from shared.protocol.entry import Entry, SlotDifferences

words = st.integers(0, (1 << 32) - 1)
floats32 = st.floats(width=32, allow_nan=False)


@st.composite
def entries(draw):
    numbers = draw(st.integers(0, 9))
    rows = st.lists(floats32, min_size=numbers, max_size=numbers)
    slot_differences = st.builds(
        SlotDifferences, words, rows.map(lambda row: np.array(row, np.float32))
    )
    return Entry(
        draw(words),
        draw(st.floats(allow_nan=False)),
        tuple(draw(st.lists(slot_differences, max_size=4))),
    )


def contents(entry):
    slots = [(s.slot, s.differences.dtype, s.differences.tobytes()) for s in entry.slots]
    return entry.round, entry.learning_rate, slots


def small():
    return Entry(7, 0.25, (SlotDifferences(0, np.array([1, -2, 3], np.float32)),))


@given(entries())
@settings(deadline=None)
def test_an_entry_comes_back_as_it_went_in(entry):
    assert contents(Entry.decode(entry.encode())) == contents(entry)


@given(entries())
@settings(deadline=None)
def test_an_entry_has_the_size_of_the_drawing(entry):
    numbers = len(entry.slots[0].differences) if entry.slots else 0
    assert len(entry.encode()) == 24 + len(entry.slots) * (4 + 4 * numbers)


def test_the_bytes_are_those_of_the_drawing():
    assert small().encode().hex(" ", 4) == (
        "01de0100 07000000 03000000 00000000 0000d03f 00000000 "  # header with 0.25, slot
        "0000803f 000000c0 00004040 e830b663"  # 1, -2, 3, checksum
    )


def test_a_shared_entry_of_64_numbers_takes_284_bytes():
    assert len(Entry(1, 1e-3, (SlotDifferences(0, np.zeros(64, np.float32)),)).encode()) == 284


def test_numbers_are_stored_as_float32_whatever_they_were():
    entry = Entry(1, 0.1, (SlotDifferences(0, np.array([0.1, 1e-3])),))
    decoded = Entry.decode(entry.encode())
    assert decoded.slots[0].differences.dtype == np.float32
    assert decoded.slots[0].differences.tolist() == np.float32([0.1, 1e-3]).tolist()
    assert decoded.learning_rate == 0.1


def test_what_is_decoded_can_be_written_to_without_touching_the_bytes():
    data = small().encode()
    Entry.decode(data).slots[0].differences[:] = 0
    assert contents(Entry.decode(data)) == contents(small())


@given(entries())
@settings(deadline=None, max_examples=20)
def test_every_truncation_is_found(entry):
    data = entry.encode()
    for size in range(len(data)):
        with pytest.raises(WireError, match="expected, got"):
            Entry.decode(data[:size])


@given(entries())
@settings(deadline=None, max_examples=10)
def test_every_flipped_bit_is_found(entry):
    data = entry.encode()
    for bit in range(8 * len(data)):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            Entry.decode(bytes(bad))


@given(entries(), st.binary(min_size=1, max_size=40))
@settings(deadline=None)
def test_bytes_too_many_are_found(entry, more):
    with pytest.raises(WireError):
        Entry.decode(entry.encode() + more)


@given(st.binary(max_size=100))
@settings(deadline=None, max_examples=300)
def test_noise_is_no_entry(noise):
    with pytest.raises(WireError):
        Entry.decode(noise)
    with pytest.raises(WireError):
        Entry.decode(small().encode()[:2] + noise)


def test_corruption_names_the_round():
    data = bytearray(small().encode())
    data[25] ^= 1
    with pytest.raises(WireError, match="entry of round 7 is corrupt"):
        Entry.decode(bytes(data))
