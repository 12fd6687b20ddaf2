"""A data set of two classes that words tell apart, and two models that can learn them."""

import pytest
import small_models

from shared.data.documents import DATASETS, Documents, Source

GOOD, BAD = "the film was great and good", "terrible plot and it was bad"
TEXTS = [f"{(BAD, GOOD)[n % 2]} {'the film ' * (n % 3)}" for n in range(60)]
CLASSES = {"task": "classification", "dataset": "tiny-reviews", "block_size": 12,
           "label_words": "terrible, great", "partitioner": "iid", "max_samples": 0}  # fmt: skip


@pytest.fixture(autouse=True)
def reviews(monkeypatch):
    """The data set, registered for a test."""
    documents = Documents(TEXTS, [f"film {n % 4}" for n in range(60)], [n % 2 for n in range(60)])
    source = Source(lambda most, by: documents.thin(most), "local", "", ("film",), "", "")
    DATASETS.names()
    monkeypatch.setitem(DATASETS._known, "tiny-reviews", source)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "head": small_models.encoder(folder / "bert"),
        "words": small_models.causal(folder / "llama"),
    }
