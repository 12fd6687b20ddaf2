"""Compiled kernels are found again wherever their sources lie, if nobody else can write there."""

import importlib.util
import os
import time

import pytest

from shared.base.files import cache_folder
from shared.directions.kernels import kernel_cache
from shared.directions.kernels.kernel_cache import KERNELS, beside, keep_kernels, kernel_folder

MODULE = """
from shared.directions.kernels.compiled import kernel

FACTOR = {factor}


@kernel("int64(int64)")
def scale(number):
    return FACTOR * number
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))
    kernel_folder.cache_clear()
    beside.cache_clear()
    yield
    kernel_folder.cache_clear()
    beside.cache_clear()


def unpack(folder, factor=3):
    """A module of one kernel in a folder of its own, as Flower unpacks an app."""
    folder.mkdir()
    file = folder / "scaling_cpu.py"
    file.write_text(MODULE.format(factor=factor))
    return load(file)


def load(file):
    spec = importlib.util.spec_from_file_location("scaling_cpu", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.scale


def found(function):
    return sum(function.stats.cache_hits.values())


def test_a_kernel_is_found_again_in_another_folder(tmp_path):
    first, second = unpack(tmp_path / "a"), unpack(tmp_path / "b")
    assert (found(first), found(second)) == (0, 1)
    assert first(14) == second(14) == 42
    assert first.stats.cache_path == second.stats.cache_path
    assert first.stats.cache_path.startswith(str(cache_folder() / KERNELS))
    assert not [*(tmp_path / "a").rglob("*.nbi")]


def test_another_source_is_compiled_anew(tmp_path):
    first, other = unpack(tmp_path / "a"), unpack(tmp_path / "b", factor=5)
    assert (found(other), first(14), other(14)) == (0, 42, 70)


def test_another_compiler_is_not_taken_for_this_one(tmp_path, monkeypatch):
    here = beside(tmp_path)
    beside.cache_clear()
    monkeypatch.setattr(kernel_cache.llvmlite, "__version__", "0.0")
    assert beside(tmp_path) != here


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_may_write_to_is_not_used(mode, tmp_path):
    root = cache_folder() / KERNELS
    root.mkdir(parents=True)
    root.chmod(mode)
    kept_beside(tmp_path)


def test_a_folder_of_another_user_is_not_used(tmp_path, monkeypatch):
    (cache_folder() / KERNELS).mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(kernel_cache.os, "geteuid", lambda: os.getuid() + 1)
    kept_beside(tmp_path)


def test_a_link_to_a_folder_is_not_used(tmp_path):
    cache_folder().mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (cache_folder() / KERNELS).symlink_to(tmp_path / "elsewhere")
    kept_beside(tmp_path)


def test_without_a_cache_kernels_are_kept_beside_their_sources(tmp_path):
    cache_folder().write_text("a file where the cache should be")
    kept_beside(tmp_path)


def test_a_user_without_a_home_keeps_kernels_beside_their_sources(tmp_path, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("DANDELION_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(kernel_cache.Path, "home", homeless)
    kept_beside(tmp_path)


def kept_beside(tmp_path):
    function = unpack(tmp_path / "a")
    assert function(14) == 42
    assert function.stats.cache_path.startswith(str(tmp_path / "a" / "__pycache__"))
    kernel_folder.cache_clear()
    assert found(load(tmp_path / "a" / "scaling_cpu.py")) == 1


def test_a_folder_that_numbas_user_names_takes_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_cache.numba.config, "CACHE_DIR", str(tmp_path / "own"))
    assert unpack(tmp_path / "a").stats.cache_path.startswith(str(tmp_path / "own"))


def test_a_numba_without_our_question_keeps_kernels_beside_their_sources(tmp_path, monkeypatch):
    file = tmp_path / "scaling_cpu.py"
    file.write_text(MODULE)
    config = kernel_cache.numba.config
    monkeypatch.delattr(config, kernel_cache.LOCATORS)
    with keep_kernels(file):
        assert str(beside(tmp_path)) == config.CACHE_DIR
    assert not config.CACHE_DIR


def test_folders_that_nobody_has_used_for_long_are_removed(tmp_path):
    root = cache_folder() / KERNELS
    for name, days in (("old", 61), ("recent", 59)):
        (root / name).mkdir(parents=True)
        used = time.time() - days * 86_400
        os.utime(root / name, (used, used))
    root.chmod(0o700)
    assert kernel_folder(tmp_path).parent == root
    assert {path.name for path in root.iterdir()} == {"recent", beside(tmp_path).name}


def test_settings_of_numba_are_as_before(tmp_path):
    config = kernel_cache.numba.config
    before = (config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES)
    unpack(tmp_path / "a")
    assert before == (config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES)
