"""Files and folders are whole or absent, and digests name what they are taken of."""

from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import save_file

from shared.base.files import (
    READ_BYTES,
    atomic_folder,
    code_digest,
    file_hash,
    translate_tensor_errors,
)

ROOT = Path(__file__).parents[3]


def test_a_folder_is_whole_or_absent(tmp_path):
    folder = tmp_path / "folder"
    with suppress(KeyError), atomic_folder(folder) as draft:
        (draft / "half").write_text("")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    dead = tmp_path / ".folder.99999999"
    dead.mkdir()
    with atomic_folder(folder) as draft, atomic_folder(tmp_path / "other"):
        (draft / "whole").write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "other"]


def test_of_two_processes_that_make_a_folder_the_first_wins(tmp_path):
    folder = tmp_path / "folder"
    with atomic_folder(folder) as draft:
        (draft / "second").write_text("")
        folder.mkdir()
        (folder / "first").write_text("")
    assert [path.name for path in folder.iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_hash_of_a_file_does_not_depend_on_how_it_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (READ_BYTES // 256) + b"and more")
    assert file_hash(path) == xxhash.xxh3_128(path.read_bytes()).hexdigest()


def test_the_code_digest_covers_names_and_contents_of_all_that_must_agree():
    digest = sha256()
    for package in ("client", "server", "shared"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    assert code_digest() == digest.digest()[:16]


def test_tensors_that_cannot_be_written_are_an_error_of_the_system(tmp_path):
    with (
        pytest.raises(OSError, match="there: Error while serializing"),
        translate_tensor_errors(tmp_path / "there"),
    ):
        save_file({"x": torch.zeros(4)}, tmp_path / "nowhere" / "x.safetensors")
