"""Which examples share a forward pass, so that what is kept of one depends on it alone.

A matrix product gives a row the same bits beside any other rows if the rows of a pass are of one
length: nothing is padded, and every sum runs over the same numbers in the same order. So examples
of equal length share passes on a CPU, and a site's features are the same whether it computes them
alone, beside other sites of its process, or finds some of them in the cache. Products of very few
rows are summed otherwise; a pass of fewer than ``FEWEST`` examples repeats them. Tried with float32
kernels of PyTorch 2.13 on x86 with one thread, for widths that are multiples of 16. A card chooses
kernels by the shape of a pass, so lengths are mixed there.
"""

from collections.abc import Iterator, Sequence

FEWEST = 4  # examples of a pass on a CPU, and so rows of the product with the output matrix


def split_into_passes(lengths: Sequence[int], most: int, *, mixed: bool) -> Iterator[list[int]]:
    """Divide examples into passes of at most ``most`` tokens, or of one example; short ones first.

    Args:
        lengths: tokens of each example.
        most: tokens of a pass, padding included.
        mixed: whether a pass may hold examples of several lengths.

    Yields:
        The places of the examples of a pass.
    """
    part: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        is_full = (len(part) + 1) * lengths[place] > most
        is_other = bool(part) and lengths[part[-1]] != lengths[place] and not mixed
        if part and (is_full or is_other):
            yield part
            part = []
        part.append(place)
    if part:
        yield part


def repeat_to_fill(part: Sequence[int]) -> list[int]:
    """The examples of a pass, in whole turns until there are ``FEWEST``."""
    return [*part] * -(-FEWEST // max(1, len(part)))
