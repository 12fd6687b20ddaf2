"""A box opens for its member and its purpose, and for nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from shared.base.errors import ConfigError, WireError
from shared.sealed.boxes import BoxPurpose, open_box, private_key, public_bytes, seal_box
from shared.sealed.field import PRIME

SENDER, MEMBER, STRANGER = (private_key(bytes([k]) * 32, bytes(32)) for k in (1, 2, 3))
PURPOSE = BoxPurpose(
    run=b"r" * 16, round=3, attempt=0, needed=3, numbers=2, digest=b"d" * 16,
    roster=b"o" * 16, sender=7, member=9, request=b"q" * 32,
)  # fmt: skip
SHARE = np.array([5, PRIME - 1], np.uint64)


def seal(purpose=PURPOSE, share=SHARE):
    return seal_box(SENDER, public_bytes(MEMBER), purpose, share)


def test_a_member_opens_what_was_sealed_for_it():
    box = seal()
    assert len(box) == 8 * 2 + 16
    assert open_box(MEMBER, public_bytes(SENDER), PURPOSE, box).tolist() == SHARE.tolist()


def test_a_box_as_it_was_written_down():
    """The bytes are a function of keys and purpose, on every machine."""
    assert seal().hex() == "d37a08e963d730da6d232b4db1dc7dd6914373c9caeb19f17f53dac1f263833b"
    assert (
        public_bytes(SENDER).hex()
        == "657b454d0bc9be81c5b4b20576ba0e8d0bde7b8036d989be4ca26516f34e8c68"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"run": b"s" * 16}, {"round": 4}, {"attempt": 1}, {"needed": 2}, {"digest": b"e" * 16},
        {"roster": b"p" * 16}, {"sender": 8}, {"member": 8}, {"request": b"p" * 32},
        {"numbers": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_box_for_another_purpose_does_not_open(change):
    with pytest.raises(WireError, match=r"box of slot [78]: "):
        open_box(MEMBER, public_bytes(SENDER), replace(PURPOSE, **change), seal())


def test_a_stranger_and_a_forger_open_and_seal_nothing():
    with pytest.raises(WireError, match="does not open"):
        open_box(STRANGER, public_bytes(SENDER), PURPOSE, seal())
    with pytest.raises(WireError, match="does not open"):
        open_box(MEMBER, public_bytes(STRANGER), PURPOSE, seal())
    box = bytearray(seal())
    box[3] ^= 1
    with pytest.raises(WireError, match="does not open"):
        open_box(MEMBER, public_bytes(SENDER), PURPOSE, bytes(box))
    with pytest.raises(WireError, match="does not open"):
        open_box(MEMBER, public_bytes(SENDER), PURPOSE, b"")


def test_two_requests_share_no_keystream():
    zeros = np.zeros(2, np.uint64)
    one, two = (seal(replace(PURPOSE, request=bytes([k]) * 32), zeros)[:16] for k in (1, 2))
    assert one != two


def test_numbers_that_are_no_elements_are_refused():
    box = seal(share=np.array([0, PRIME], np.uint64))
    with pytest.raises(WireError, match=r"numbers below 2\^61 - 1 expected"):
        open_box(MEMBER, public_bytes(SENDER), PURPOSE, box)


def test_a_public_key_of_small_order_is_refused():
    with pytest.raises(ConfigError, match="is no X25519 public key"):
        seal_box(SENDER, bytes(32), PURPOSE, SHARE)
