"""No two random streams can share a counter of the generator; every key is made in one table."""

import ast
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.randomness import streams
from shared.randomness.streams import ROUNDS, SLOTS, WORDS, Key, Stream

ROOT = Path(__file__).parents[3]
BUILDERS = {  # each stream's function, with the numbers that it takes after the seed
    Stream.DIRECTIONS: lambda s, r, slot, n: streams.direction_keys(s, r, slot, n % 1000, 3)[-1],
    Stream.PROBE_DIRECTIONS: lambda s, r, slot, n: streams.probe_keys(s, 1 + n % 9, r - 1)[-1],
    Stream.QUERY_BATCHES: streams.query_batch_key,
    Stream.GRADIENT_BATCHES: streams.gradient_batch_key,
    Stream.MODEL_WEIGHTS: lambda s, r, slot, n: streams.model_weights_key(s, n),
    Stream.ADAPTER_WEIGHTS: lambda s, r, slot, n: streams.adapter_weights_key(s, n),
    Stream.HEAD_WEIGHTS: lambda s, r, slot, n: streams.head_weights_key(s, n),
    Stream.PARTITION: lambda s, r, slot, n: streams.partition_key(s, n),
    Stream.ROUNDING: streams.rounding_key,
    Stream.MASKS: lambda s, r, slot, n: streams.mask_key(Key(s, r, slot, n)),
    Stream.ROUND_SIGNS: lambda s, r, slot, n: streams.round_signs_key(Key(s, r, slot, n << 20)),
    Stream.COHORT: lambda s, r, slot, n: streams.cohort_key(s, r, n),
}
seeds, rounds = st.integers(0, 2**64 - 1), st.integers(1, ROUNDS - 1)
numbers = st.integers(0, (1 << 16) - 1)


def overlap(one, other):
    """Whether two ranges of step 1 have a number in common."""
    return max(one.start, other.start) < min(one.stop, other.stop)


def stream_of(key):
    """The one stream whose ranges hold the key's words."""
    words = (key.round, key.slot, key.index)
    (stream,) = [
        stream
        for stream in Stream
        if all(word in allowed for word, allowed in zip(words, stream.value, strict=True))
    ]
    return stream


def test_no_two_streams_can_share_a_counter():
    for one, other in combinations(Stream, 2):
        meets = [overlap(*ranges) for ranges in zip(one.value, other.value, strict=True)]
        assert not all(meets), (one, other)


@pytest.mark.parametrize("stream", Stream)
def test_a_stream_has_ranges_of_words_of_32_bits(stream):
    for allowed in stream.value:
        assert allowed.step == 1
        assert 0 <= allowed.start < allowed.stop <= WORDS


def test_every_stream_has_a_function():
    assert list(BUILDERS) == list(Stream)


@pytest.mark.parametrize("stream", Stream)
@settings(max_examples=50, deadline=None)
@given(seed=seeds, round_=rounds, slot=st.integers(0, SLOTS - 1), number=numbers)
def test_a_key_lies_in_its_own_stream_alone(stream, seed, round_, slot, number):
    key = BUILDERS[stream](seed, round_, slot, number)
    assert stream_of(key) is stream
    assert key.seed == seed


@pytest.mark.parametrize("stream", Stream)
def test_the_words_of_a_key_are_those_of_earlier_versions(stream):
    """A run that was recorded before must be replayed with the same random words."""
    earlier = {
        Stream.DIRECTIONS: (3, 5, 9),
        Stream.PROBE_DIRECTIONS: (3, 0, (1 << 20) + 7),
        Stream.QUERY_BATCHES: (3, 1 << 31 | 5, 7),
        Stream.GRADIENT_BATCHES: (3, 1 << 31 | 5, (1 << 16) + 7),
        Stream.MODEL_WEIGHTS: (0, 1 << 31, 7),
        Stream.ADAPTER_WEIGHTS: (0, 1 << 31, (1 << 20) + 7),
        Stream.HEAD_WEIGHTS: (0, 1 << 31, (1 << 21) + 7),
        Stream.PARTITION: (0, (1 << 31) + 1, 7),
        Stream.ROUNDING: (3 | 1 << 30, 5, 7),
        Stream.MASKS: (3 | 1 << 31, 5, 7),
        Stream.ROUND_SIGNS: (3 | 1 << 31, 5, 1 << 31 | 7),
        Stream.COHORT: (3 | 3 << 30, 0, 7),
    }
    assert BUILDERS[stream](11, 3, 5, 7) == Key(11, *earlier[stream])


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: streams.direction_keys(1, ROUNDS, 0, 0, 1), "round"),
        (lambda: streams.direction_keys(1, 1, SLOTS, 0, 1), "slot"),
        (lambda: streams.direction_keys(1, 1, 0, (1 << 20) - 1, 2), "index"),
        (lambda: streams.query_batch_key(1, 0, 1, 0), "round"),
        (lambda: streams.query_batch_key(1, 1, 1, 1 << 16), "index"),
        (lambda: streams.query_batch_key(1, 1, -1, 0), "slot"),
        (lambda: streams.model_weights_key(1, 1 << 20), "index"),
        (lambda: streams.cohort_key(1, ROUNDS, 0), "round"),
    ],
)
def test_a_word_that_could_meet_another_stream_is_refused(build, word):
    with pytest.raises(ValueError, match=f"a {word} word in range"):
        build()


def test_keys_are_made_in_the_table_alone():
    for package in ("client", "server", "shared"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name == "streams.py":
                continue
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            makers = [n.func.id for n in calls if isinstance(n.func, ast.Name)]
            assert "Key" not in makers, path
