"""A payload that is not whole, or not of this gradient, is refused with its reason."""

import math

import numpy as np
import pytest
from codec_trials import LAYOUT, codecs, vector
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base.errors import WireError
from shared.base.flat import TILE
from shared.codecs import CODECS
from shared.codecs.addresses import decode_addresses, encode_addresses, size_of_addresses
from shared.codecs.frame import HEADER_BYTES, seal_frame


@given(data=st.data(), limit=st.integers(1, 5000))
@settings(deadline=None, max_examples=100)
def test_addresses_come_back_in_the_stated_length(data, limit):
    chosen = data.draw(st.sets(st.integers(0, limit - 1), min_size=1, max_size=200))
    addresses = np.array(sorted(chosen), dtype=np.int64)
    body = encode_addresses(addresses, limit)
    assert len(body) == size_of_addresses(addresses.size, limit)
    assert np.array_equal(decode_addresses(memoryview(body), addresses.size, limit), addresses)


@given(body=st.binary(min_size=size_of_addresses(20, 999), max_size=size_of_addresses(20, 999)))
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_rising_addresses_below_the_limit_or_refused(body):
    try:
        addresses = decode_addresses(memoryview(body), 20, 999)
    except WireError:
        return
    assert addresses.size == 20
    assert addresses[-1] < 999
    assert (np.diff(addresses) > 0).all()


@codecs
@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_any_changed_byte_is_found(codec, data):
    payload = bytearray(codec.encode(vector()))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError):
        codec.decode(bytes(payload))


@codecs
def test_any_changed_header_byte_is_found(codec):
    for position in range(HEADER_BYTES):
        payload = bytearray(codec.encode(vector()))
        payload[position] ^= 1
        with pytest.raises(WireError):
            codec.decode(bytes(payload))


@codecs
@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_any_truncation_is_found(codec, data):
    payload = codec.encode(vector())
    with pytest.raises(WireError, match="truncated"):
        codec.decode(payload[: data.draw(st.integers(0, len(payload) - 1))])


@codecs
@given(noise=st.binary(max_size=300))
@settings(deadline=None, max_examples=30)
def test_any_noise_is_refused(codec, noise):
    with pytest.raises(WireError):
        codec.decode(noise)


@codecs
def test_oversized_foreign_and_misnumbered_payloads_are_refused_by_reason(codec):
    payload = codec.encode(vector())
    with pytest.raises(WireError, match="oversized"):
        codec.decode(payload + b"\0")
    with pytest.raises(WireError, match="payload of codec"):
        codec.decode(seal_frame(b"none", LAYOUT.parameters, payload[HEADER_BYTES:]))
    with pytest.raises(WireError, match=f"{LAYOUT.parameters} parameters expected, got 7"):
        codec.decode(seal_frame(payload[:4], 7, payload[HEADER_BYTES:]))
    with pytest.raises(WireError, match="crc32"):
        codec.decode(payload[:-1] + bytes([payload[-1] ^ 1]))


@codecs
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_refused_by_whoever_decodes(codec, bad):
    numbers = vector(spread=1.0)
    numbers[LAYOUT.tensors[2].start + 5] = bad
    with pytest.raises(WireError, match="finite"):
        codec.decode(codec.encode(numbers))


def test_int8_products_that_overflow_are_refused():
    codec = CODECS["int8"](LAYOUT)
    scales = np.full(LAYOUT.size // TILE, 3e38, dtype="<f4").tobytes()
    body = scales + np.full(LAYOUT.parameters, 127, dtype=np.int8).tobytes()
    with pytest.raises(WireError, match="finite gradient"):
        codec.decode(seal_frame(b"int8", LAYOUT.parameters, body))
