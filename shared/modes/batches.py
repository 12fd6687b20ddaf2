"""Which of a site's examples a step sees: drawn by its key, or by whole epochs.

Both are pure functions of seed, site and round (invariant I7): a request that is repeated, and a
site that was away, see the same examples.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import DataError
from shared.config.schema import Config
from shared.modes.mode import mode_of
from shared.randomness.philox import words
from shared.randomness.streams import Key, gradient_batch_key, query_batch_key

Rows = NDArray[np.int64]
EPOCHS = "epochs"


def query_rows(config: Config, slot: int, round_: int, number: int, count: int) -> Rows:
    """The rows that a site measures loss differences on, of its ``count`` examples.

    Args:
        config: of the run.
        slot: of the site.
        round_: that is measured.
        number: of the local step, or of the query over all steps if each has its own batch.
        count: examples of the site.

    Returns:
        Rows (zo-batch-size,), that times the queries if query-data is shared; all in their order if
        the size is 0. With ``batch-order = epochs`` the last batch of an epoch may be shorter.

    Raises:
        DataError: the site has no examples.
    """
    c = config
    size = c.zo.batch_size * (c.zo.queries if c.zo.query_data == "shared" else 1)
    if not size:
        return np.arange(count)
    if c.data.batch_order != EPOCHS:
        return draw(query_batch_key(c.training.seed, round_, slot, number), count, size)
    each = c.training.local_steps * (c.zo.queries if c.zo.query_data == "fresh" else 1)
    at = (round_ - 1) * each + number
    return _part(lambda e: query_batch_key(c.training.seed, e, slot, 0), at, count, size)


def gradient_rows(config: Config, slot: int, round_: int, step: int, count: int) -> Rows:
    """The rows of one backward pass, of a site's ``count`` examples; ``bp-batch-size`` of them.

    As ``query_rows``. Of a mode with an interval only the rounds that backpropagate go on in an
    epoch.
    """
    c, size = config, config.bp.batch_size
    if not size:
        return np.arange(count)
    if c.data.batch_order != EPOCHS:
        return draw(gradient_batch_key(c.training.seed, round_, slot, step), count, size)
    mode = mode_of(c)
    before = (round_ - 1) // (c.bp.interval if mode.has_interval else 1)
    each = c.training.local_steps if mode.takes_local_steps else 1
    at = before * each + step
    return _part(lambda e: gradient_batch_key(c.training.seed, e, slot, 0), at, count, size)


def _part(key_of: Callable[[int], Key], at: int, count: int, size: int) -> Rows:
    """Batch number ``at`` of all epochs, whose orders the keys of 1, 2, … name."""
    if count < 1:
        raise DataError("at least 1 example expected in an epoch, got 0")
    epoch, part = divmod(at, -(-count // size))
    return shuffle(key_of(1 + epoch), count)[part * size : (part + 1) * size]


@lru_cache(maxsize=4)  # one epoch after the other is asked for, a batch at a time
def shuffle(key: Key, count: int) -> Rows:
    """The rows (count,) in a random order, the same on every machine; not to be written to.

    They are sorted by a word of 32 bits each; of two equal words the lower row comes first.
    """
    drawn = words(key, range(-(-count // 4))).reshape(-1)[:count]
    order = np.argsort(drawn, kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


def draw(key: Key, count: int, batch: int) -> Rows:
    """Draw the rows (batch,) of ``count`` examples, as the ``key`` of a batch says.

    A pure function of its arguments (invariant I7). Rows are distinct if there are enough, by
    Floyd's algorithm (Bentley and Floyd 1987). Else each row comes ``batch // count`` times, and
    the rest are distinct. Of n rows one is word · n >> 32: off uniform by less than n / 2**32.

    Raises:
        DataError: there is no example, or an empty batch.
    """
    if count < 1 or batch < 1:
        raise DataError(f"a batch of at least 1 from at least 1 example expected: {batch}, {count}")
    whole, rest = divmod(batch, count)
    bits = words(key, range(-(-rest // 4))).reshape(-1).tolist()
    chosen: dict[int, None] = {}  # keeps the order
    for top, word in zip(range(count - rest, count), bits, strict=False):
        row = word * (top + 1) >> 32
        chosen[top if row in chosen else row] = None
    return np.append(np.arange(whole * count) % count, np.array([*chosen], np.int64))
