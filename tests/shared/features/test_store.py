"""Kept tensors: found again, never stale, within their limits, and never the end of a run."""

import errno
import logging
import os
import resource
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from shared.features import tensor_folder
from shared.features.store import KeptTensors, example_key, example_keys, features_name
from shared.features.tensor_folder import HEADER

MIB = 1 << 20
KEYS = [bytes([n]) * 16 for n in range(8)]
TENSORS = [torch.randn(3, n + 1, generator=torch.Generator().manual_seed(n)) for n in range(8)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path))
    return tmp_path / "features"


def store(name="a", memory=MIB, disk=MIB, dtype=torch.float32):
    return KeptTensors(name, memory, disk, dtype)


def files(cache, name="a"):
    return sorted((cache / f"{name}-float32").iterdir())


def bytes_in(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def same(tensors, expected):
    return all(torch.equal(*pair) for pair in zip(tensors, expected, strict=True))


# --- kept, and found again


@pytest.mark.parametrize(("memory", "disk"), [(MIB, 0), (0, MIB), (MIB, MIB), (40, MIB)])
def test_what_was_put_is_there_and_nothing_else(memory, disk):
    kept = store(memory=memory, disk=disk)
    kept.put(KEYS[:4], TENSORS[:4])
    assert kept.missing(KEYS[:6]) == [4, 5]
    assert same(kept.get(KEYS[:4]), TENSORS[:4])
    assert kept.get(KEYS[3:5])[1] is None


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (2, 3, 4)])
def test_a_tensor_of_any_shape_comes_back(shape):
    tensor = torch.randn(shape)
    store(memory=0).put(KEYS[:1], [tensor])
    assert torch.equal(store(memory=0).get(KEYS[:1])[0], tensor)


def test_a_copy_is_handed_out_and_a_copy_is_kept():
    kept, tensor = store(), torch.ones(3)
    kept.put(KEYS[:1], [tensor])
    tensor.zero_()
    kept.get(KEYS[:1])[0].zero_()
    assert torch.equal(kept.get(KEYS[:1])[0], torch.ones(3))


def test_bfloat16_rounds_to_the_nearest_and_takes_half(cache):
    values = torch.tensor([1.0 + 2**-9, 1.0 + 3 * 2**-9, -3.14159])
    rounded, whole = store(dtype=torch.bfloat16), store()
    rounded.put(KEYS[:1], [values])
    whole.put(KEYS[:1], [values])
    back = store(memory=0, dtype=torch.bfloat16).get(KEYS[:1])[0]
    assert back.dtype is torch.float32
    assert torch.equal(back, values.bfloat16().float())
    assert back[:2].tolist() == [1.0, 1.0 + 2**-7]  # halves go to the even neighbour
    assert rounded.memory_used * 2 == whole.memory_used


def test_a_restarted_process_finds_the_tensors(tmp_path):
    lines = "\n".join([
        "import torch", "from shared.features.store import KeptTensors",
        f"kept = KeptTensors('a', {MIB}, {MIB}, torch.float32)",
        "kept.put([b'k' * 16], [torch.arange(5.0)])",
    ])  # fmt: skip
    subprocess.run([sys.executable, "-c", lines], check=True, env=os.environ)
    assert torch.equal(store().get([b"k" * 16])[0], torch.arange(5.0))


def test_another_process_s_tensors_are_seen_while_both_live(cache):
    one, two = store(), store()
    one.put(KEYS[:2], TENSORS[:2])
    two.put(KEYS[2:4], TENSORS[2:4])
    assert same(one.get(KEYS[:4]), TENSORS[:4])
    assert same(two.get(KEYS[:4]), TENSORS[:4])
    assert len(files(cache)) == 2


def test_a_key_is_stored_once(cache):
    kept = store()
    kept.put(KEYS[:1], TENSORS[:1])
    before = bytes_in(cache)
    kept.put(KEYS[:1], TENSORS[:1])
    store().put(KEYS[:1], TENSORS[:1])
    assert bytes_in(cache) == before


def test_files_are_for_the_user_alone(cache):
    store().put(KEYS[:1], TENSORS[:1])
    assert [stat.S_IMODE(path.stat().st_mode) for path in files(cache)] == [0o600]
    assert stat.S_IMODE((cache / "a-float32").stat().st_mode) == 0o700


# --- damage


def test_a_record_that_is_cut_off_ends_its_file_with_a_warning(cache, caplog):
    store().put(KEYS[:3], TENSORS[:3])
    (path,) = files(cache)
    path.write_bytes(path.read_bytes()[:-1])
    kept = store()
    assert kept.missing(KEYS[:3]) == [2]
    assert "damaged" in caplog.text
    assert same(kept.get(KEYS[:2]), TENSORS[:2])


@pytest.mark.parametrize("byte", range(HEADER.size + 24))
def test_a_damaged_header_ends_its_file_whichever_byte_it_is(cache, caplog, byte):
    store().put(KEYS[:2], TENSORS[:2])
    (path,) = files(cache)
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
    assert store().missing(KEYS[:2]) == [0, 1]
    assert caplog.text.count("damaged at byte") == 1


def test_a_damaged_tensor_is_missing_and_can_be_put_again(cache, caplog):
    store().put(KEYS[:2], TENSORS[:2])
    (path,) = files(cache)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    kept = store(memory=0)
    assert kept.get(KEYS[:2])[1] is None
    assert "computed anew" in caplog.text
    kept.put(KEYS[1:2], TENSORS[1:2])
    assert same(kept.get(KEYS[:2]), TENSORS[:2])
    assert same(store(memory=0).get(KEYS[:2]), TENSORS[:2])


def test_a_file_of_anything_else_is_ignored(cache, caplog):
    folder = cache / "a-float32"
    folder.mkdir(parents=True)
    (folder / "0.tensors").write_bytes(b"\x80\x04cos\nsystem\n" * 20)
    kept = store()
    kept.put(KEYS[:1], TENSORS[:1])
    assert same(kept.get(KEYS[:1]), TENSORS[:1])
    assert "damaged at byte 0" in caplog.text


# --- limits


def test_memory_stays_below_its_limit():
    kept = store(memory=100, disk=0)
    kept.put(KEYS, TENSORS)
    assert 0 < kept.memory_used <= 100
    assert KEYS[0] not in [KEYS[at] for at in kept.missing(KEYS)]
    assert kept.missing(KEYS)


def test_the_limit_of_the_disk_holds_with_one_warning(cache, caplog):
    kept = store(memory=0, disk=400)
    for key, tensor in zip(KEYS, TENSORS, strict=True):
        kept.put([key], [tensor])
    assert 0 < bytes_in(cache) <= 400
    assert caplog.text.count("keep-disk") == 1
    assert same(kept.get(KEYS[:1]), TENSORS[:1])


def test_the_least_recently_used_name_goes_first_and_none_in_use(cache):
    for age, name in enumerate(("old", "older", "busy")):
        store(name).put(KEYS[:1], [torch.zeros(100)])
        when = 1_000_000_000 - 1000 * age
        os.utime(cache / f"{name}-float32", (when, when))
    busy = store("busy")
    os.utime(cache / "busy-float32", (1, 1))  # the oldest of all, but in use
    one = bytes_in(cache / "busy-float32")
    new = store("new", disk=3 * one + 10)
    new.put(KEYS[:1], [torch.ones(100)])
    assert sorted(path.name[: -len("-float32")] for path in cache.iterdir()) == [
        "busy",
        "new",
        "old",
    ]
    assert torch.equal(busy.get(KEYS[:1])[0], torch.zeros(100))
    assert bytes_in(cache) <= 3 * one + 10


# --- a disk that fails


def test_a_full_disk_is_one_warning_and_leaves_no_part_of_a_record(cache, caplog, monkeypatch):
    kept = store()
    kept.put(KEYS[:1], TENSORS[:1])
    size, write = bytes_in(cache), os.write

    def fail(file, data):
        if len(data) > 10:
            return write(file, bytes(data[:10]))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_folder.os, "write", fail)
    kept.put(KEYS[1:2], TENSORS[1:2])
    kept.put(KEYS[2:3], TENSORS[2:3])
    assert bytes_in(cache) == size
    assert same(kept.get(KEYS[:3]), TENSORS[:3])  # memory has them
    assert caplog.text.count("No space left") == 1


def test_a_limit_of_the_system_is_a_warning_too(caplog):
    kept = store(memory=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
        kept.put(KEYS, TENSORS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert kept.missing(KEYS) == list(range(8))
    assert "File too large" in caplog.text


def test_a_cache_that_cannot_be_made_leaves_memory(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "file"))
    kept = store()
    kept.put(KEYS, TENSORS)
    assert same(kept.get(KEYS), TENSORS)
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


# --- keys


def test_a_key_is_of_the_tokens_alone_however_long_the_row_is():
    rows = np.array([[5, 6, -1, -1], [5, 6, 7, -1], [-1, -1, -1, -1], [0, 0, 0, 0]])
    keys = example_keys(rows)
    assert len(set(keys)) == 4
    assert all(len(key) == 16 for key in keys)
    assert keys == [example_key(row) for row in rows]
    assert example_key(np.array([5, 6])) == keys[0]
    assert example_keys(rows.astype(np.int32)) == keys


def test_a_left_out_token_within_a_text_is_part_of_the_key():
    assert example_key(np.array([5, -1, 6])) != example_key(np.array([5, 6]))


# --- names: never stale


def block(width=4, **options):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(width, width), nn.LayerNorm(width, **options), nn.Linear(width, 2)
    )


FROZEN = ("0.weight", "0.bias")


def test_equal_models_have_one_name():
    assert features_name(block(), FROZEN, "t", "w") == features_name(block(), FROZEN, "t", "w")


def test_a_trained_parameter_is_no_part_of_the_name():
    module, before = block(), features_name(block(), FROZEN, "t", "w")
    module[2].weight.data += 1
    assert features_name(module, FROZEN, "t", "w") == before


@pytest.mark.parametrize(("tokenizer", "what"), [("other", "w"), ("t", "other"), ("tw", "")])
def test_another_tokenizer_or_cut_has_another_name(tokenizer, what):
    assert features_name(block(), FROZEN, tokenizer, what) != features_name(
        block(), FROZEN, "t", "w"
    )


def change(bits):
    def apply(module):
        module[0].weight.data.view(torch.int32)[0, 0] += bits
        return module

    return apply


@pytest.mark.parametrize(
    "other",
    [
        change(1),
        lambda module: module.bfloat16(),
        lambda module: (module.register_buffer("b", torch.ones(1)), module)[1],
        lambda module: block(eps=1e-3),
    ],
)  # fmt: skip
def test_another_frozen_part_has_another_name(other):
    before = features_name(block(), FROZEN, "t", "w")
    assert features_name(other(block()), FROZEN, "t", "w") != before
