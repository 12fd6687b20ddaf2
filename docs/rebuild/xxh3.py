"""The hash of 128 bits that digests are made of: XXH3, of more than 240 bytes."""

import struct

import numpy as np

from .words import Array, LayoutError

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
PRIMES32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
PRIMES64 = (
    0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9,
    0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5,
)  # fmt: skip
STRIPE, BLOCK = 64, 1024
MASK = 2**64 - 1


def xxh3_128(data: bytes) -> bytes:
    """XXH3-128 of more than 240 bytes, seed 0, in canonical order (Collet, xxHash 0.8)."""
    if len(data) <= 240:
        raise LayoutError(f"more than 240 bytes expected, got {len(data)}")
    lanes = [PRIMES32[2], *PRIMES64[:4], PRIMES32[1], PRIMES64[4], PRIMES32[0]]
    state = np.array(lanes, np.uint64)
    whole = (len(data) - 1) // BLOCK
    sums = accumulate(
        np.frombuffer(data, "<u8", whole * BLOCK // 8).reshape(whole, BLOCK // STRIPE, 8), 0
    )
    scramble = np.frombuffer(SECRET, "<u8", 8, len(SECRET) - STRIPE)
    for block in sums:
        state = state + block
        state = (state ^ (state >> np.uint64(47)) ^ scramble) * np.uint64(PRIMES32[0])
    rest = data[whole * BLOCK : (len(data) - 1) // STRIPE * STRIPE]
    state = state + accumulate(np.frombuffer(rest, "<u8").reshape(1, len(rest) // STRIPE, 8), 0)[0]
    last = np.frombuffer(data[-STRIPE:], "<u8").reshape(1, 1, 8)
    state = state + accumulate(last, len(SECRET) - STRIPE - 7)[0]
    low = merge(state, 11, len(data) * PRIMES64[0] & MASK)
    high = merge(state, len(SECRET) - STRIPE - 11, ~(len(data) * PRIMES64[1]) & MASK)
    return struct.pack(">QQ", high, low)


def accumulate(stripes: Array, offset: int) -> Array:
    """The sums (blocks, 8) that stripes (blocks, n, 8) add to the state."""
    count = stripes.shape[1]
    secret = [np.frombuffer(SECRET, "<u8", 8, offset + 8 * number) for number in range(count)]
    keyed = stripes ^ np.array(secret, np.uint64).reshape(1, count, 8)
    products = (keyed & np.uint64(0xFFFFFFFF)) * (keyed >> np.uint64(32))
    swapped = stripes.reshape(len(stripes), count, 4, 2)[..., ::-1].reshape(stripes.shape)
    result: Array = (products + swapped).sum(1, dtype=np.uint64)
    return result


def merge(state: Array, offset: int, start: int) -> int:
    """Fold the eight numbers of the state into one."""
    for pair in range(4):
        secret = struct.unpack_from("<QQ", SECRET, offset + 16 * pair)
        product = (int(state[2 * pair]) ^ secret[0]) * (int(state[2 * pair + 1]) ^ secret[1])
        start += (product & MASK) ^ (product >> 64)
    start &= MASK
    start = (start ^ start >> 37) * 0x165667919E3779F9 & MASK
    return start ^ start >> 32
