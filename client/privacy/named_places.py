"""What a run's settings name at a site: folders and files of its disk, and modules to import.

Data are what the site names. A run that names a folder of a site's disk would choose what is read.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from shared.config.schema import Config

SERVERS = (  # no site reads these
    "app-dir", "output-dir", "run-name", "resume", "eval-dataset", "sample-prompts",
)  # fmt: skip


def paths_of_run(config: Config, own: Collection[str] = ()) -> Iterator[str]:
    """The paths, without links, that a site would read because the run's settings name them.

    Args:
        config: of the run.
        own: settings in whose place the site has something of its own.
    """
    unread = {*SERVERS, *own}
    if "dataset" in own and config.bp.dataset == config.data.dataset:
        unread.add("bp-dataset")  # the site's own stand for both
    for key, value in config.paths().items():
        if key not in unread and is_path(value):
            yield os.path.realpath(Path(value).expanduser())


def is_path(value: str) -> bool:
    """Whether a value that may also be a name is a path here: it looks like one, or exists."""
    return bool(value) and (
        value.startswith(("/", ".", "~")) or ".." in Path(value).parts or Path(value).exists()
    )


def apps_of(config: Config) -> Iterator[str]:
    """What the run has imported, as ``module:attribute``: its own problem, and its reward."""
    from shared.objectives.reward import is_reward  # it imports torch, which a ClientApp does not

    if config.model.app:
        yield config.model.app
    if is_reward(config.zo.objective):
        yield config.zo.objective
