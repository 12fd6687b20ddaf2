"""State of the Union addresses, 1790 to 2021: one document per address."""

import json

from shared.data.documents import DATASETS, Documents, Source
from shared.packages.package import CARRIERS, fetch


def sotu(max_samples: int, by: str = "president") -> Documents:
    """Addresses in the order of their years, grouped by who gave them, by party or by decade."""
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
