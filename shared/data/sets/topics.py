"""Python's reference manual as ``help()`` prints it: one document and one group per topic."""

from importlib import import_module

from shared.base.errors import DataError
from shared.data.documents import DATASETS, Documents, Source


def topics(max_samples: int, by: str = "topic") -> Documents:
    """Half a megabyte of English prose; found wherever ``help()`` works, also without sources."""
    del by
    try:
        known: dict[str, str] = import_module("pydoc_data.topics").topics
    except ModuleNotFoundError as error:
        raise DataError(
            "this Python has no pydoc_data.topics (some images strip it): install the standard "
            "library (Debian: libpython3-stdlib) or choose another dataset"
        ) from error
    names = sorted(known)
    return Documents([known[name] for name in names], names).thin(max_samples)


DATASETS.register("topics")(
    Source(
        topics, "embedded", "Python's reference manual as help() prints it", ("topic",),
        "0.5 MB", "PSF",
    )
)  # fmt: skip
