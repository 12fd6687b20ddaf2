"""Which data set a name means, and its documents grouped as the run asks."""

from dataclasses import replace
from pathlib import Path

from shared.base.errors import ConfigError
from shared.data.documents import DATASETS, Documents, Source
from shared.data.local_folder import folder_source
from shared.data.sets.hub import any_on_hub

LABEL = "label"  # groups that are the classes


def source_of(name: str) -> Source:
    """A registered data set, a local folder, or ``owner/name[:config]`` on the hub.

    Raises:
        UnknownNameError: nothing has this name.
    """
    if name in DATASETS.names():
        return DATASETS[name]
    if Path(name).is_dir():
        return folder_source(Path(name))
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/"):
        return any_on_hub(name)
    if "/" in name:
        raise ConfigError(f"dataset: {name!r} is no folder here")
    return DATASETS[name]


def documents_of(name: str, max_samples: int = 0, by: str = "") -> Documents:
    """Load a data set, its documents grouped by a natural id, or by their label.

    Args:
        name: of the data set.
        max_samples: how many documents to keep; 0: as many as the data set recommends.
        by: one of its natural ids, or ``label``; empty: its usual one.

    Raises:
        ConfigError: the data set has no such id.
        DataError: it cannot be had; says what to download and where to put it.
    """
    source = source_of(name)
    usual = source.ids[0]
    if by not in ("", LABEL, *source.ids):
        raise ConfigError(
            f"partition-by: {name!r} can be grouped by {', '.join(source.ids)}, or by label where "
            f"it has classes; got {by!r}"
        )
    documents = source.load(max_samples or source.samples, usual if by in ("", LABEL) else by)
    if by != LABEL:
        return documents
    if documents.labels is None:
        raise ConfigError(f"partition-by = label: {name!r} has no classes")
    names = [documents.classes[label] for label in documents.labels]
    return replace(documents, groups=names)
