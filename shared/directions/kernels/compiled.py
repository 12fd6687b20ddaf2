"""Numba kernels: compiled once, kept on disk, run on as many threads as torch uses."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from shared.directions.kernels.kernel_cache import keep_kernels

PARALLEL_FROM = 1 << 17  # additions: below, a launch costs more than a second thread saves


@cache
def most_threads() -> int:
    """Launch numba's threads and return how many there are: one if only its work queue loads.

    The work queue ends the process when two Python threads use it at once, and was no faster than
    one thread when measured; OpenMP and TBB are safe. Numba's launch sets the number of threads of
    the OpenMP runtime that it shares with torch, so torch's own number is put back.
    """
    before = torch.get_num_threads()
    numba.set_num_threads(numba.get_num_threads())
    torch.set_num_threads(before)
    safe = numba.threading_layer() in ("omp", "tbb")
    return int(numba.config.NUMBA_NUM_THREADS) if safe else 1


def shares(additions: int, pieces: int) -> int:
    """Return how many threads share these additions to so many pieces, and tell numba."""
    if additions < PARALLEL_FROM or (wanted := torch.get_num_threads()) == 1:
        return 1
    threads = max(1, min(wanted, most_threads(), pieces))
    numba.set_num_threads(threads)  # for launches from this Python thread
    return threads


def kernel(signature: str, **options: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile at import or load from the cache; without a writable folder, compile each time.

    A function has one signature, so processes that compile at once write files of equal content.
    """
    options |= {"nogil": True, "error_model": "numpy"}
    if "parallel" in options:
        most_threads()  # or compiling would launch them

    def compile_(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            with keep_kernels(Path(function.__code__.co_filename)):
                return njit(signature, cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return njit(signature, **options)(function)

    return compile_


@intrinsic
def floats_at(context, address):
    """Take an address for a pointer to float32."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.int64), generate


@intrinsic
def integers_at(context, address):
    """Take an address for a pointer to int64."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())

    return types.CPointer(types.int64)(types.int64), generate


@intrinsic
def words_at(context, address):
    """Take an address for a pointer to the bits of numbers of four bytes."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(32).as_pointer())

    return types.CPointer(types.uint32)(types.int64), generate


@intrinsic
def halves_at(context, address):
    """Take an address for a pointer to the bits of numbers of two bytes."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(16).as_pointer())

    return types.CPointer(types.uint16)(types.int64), generate


@intrinsic
def prefetch(context, address):
    """Ask for the cache line at an address, which need not be anyone's."""

    def generate(context, builder, signature, arguments):
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        reading, every_level, data = word(0), word(3), word(1)
        builder.call(call, [builder.inttoptr(arguments[0], byte), reading, every_level, data])
        return context.get_dummy_value()

    return types.none(types.int64), generate
