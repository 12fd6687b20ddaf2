"""Known data sets of the Hugging Face hub: one row each, its address and what its columns mean.

A large set is never downloaded as a whole. Its first documents are streamed, as many as are
recommended or as ``max-samples`` says.
"""

from shared.data.documents import DATASETS
from shared.data.hub_cache import HubRow, hub_source

WEB = ("text",)

# name: row, what it is, size, licence
HUB: dict[str, tuple[HubRow, str, str, str]] = {
    "cosmopedia-100k": (
        HubRow("HuggingFaceTB/cosmopedia-100k", "", WEB, "format", samples=100_000),
        "synthetic textbooks, stories and posts, a sample", "100,000 documents", "Apache-2.0",
    ),
    "cosmopedia": (
        HubRow("HuggingFaceTB/cosmopedia", "web_samples_v2", WEB, "format", samples=100_000),
        "synthetic textbooks, stories and posts", "30 M documents, 92 GB", "Apache-2.0",
    ),
    "wikitext-103": (
        HubRow("Salesforce/wikitext", "wikitext-103-raw-v1", WEB, headings=True),
        "good articles of Wikipedia", "28,000 articles, 540 MB", "CC BY-SA",
    ),
    "openwebtext": (
        HubRow("Skylion007/openwebtext", "", WEB, samples=50_000),
        "pages that were linked on Reddit", "8 M documents, 40 GB", "CC0 (the packaging)",
    ),
    "c4": (
        HubRow("allenai/c4", "en", WEB, samples=50_000),
        "cleaned web pages in English", "365 M documents, 305 GB", "ODC-BY",
    ),
    "tinystories": (
        HubRow("roneneldan/TinyStories", "", WEB, samples=100_000),
        "short stories in simple words", "2.1 M stories, 2 GB", "CDLA-Sharing-1.0",
    ),
    "pile-subset": (
        HubRow("NeelNanda/pile-10k", "", WEB, "meta.pile_set_name"),
        "the first documents of the Pile", "10,000 documents", "mixed; see the Pile",
    ),
    "fineweb": (
        HubRow("HuggingFaceFW/fineweb", "default", WEB, "dump", samples=50_000),
        "web pages, filtered", "15 T tokens", "ODC-BY",
    ),
    "fineweb-edu": (
        HubRow("HuggingFaceFW/fineweb-edu", "default", WEB, "dump", samples=50_000),
        "web pages that teach", "1.3 T tokens", "ODC-BY",
    ),
    "fineweb-edu-10bt": (
        HubRow("HuggingFaceFW/fineweb-edu", "sample-10BT", WEB, "dump", samples=50_000),
        "web pages that teach, a sample", "10 G tokens, 28 GB", "ODC-BY",
    ),
    "sst2": (
        HubRow("stanfordnlp/sst2", "", ("sentence",), label="label", held_out="validation"),
        "sentences of film reviews, negative or positive", "67,349 + 872 sentences", "see the hub",
    ),
    "dclm-local": (
        HubRow("mlfoundations/dclm-baseline-1.0-parquet", "", WEB, samples=50_000),
        "web pages, filtered by a classifier", "4 T tokens", "CC BY",
    ),
    "pubmedqa-local": (
        HubRow("qiaojin/PubMedQA", "pqa_labeled", ("question", "long_answer", "final_decision"),
            label="final_decision"),
        "questions on abstracts, with answer and decision", "1,000 questions", "MIT",
    ),
}  # fmt: skip


for _name, (_row, *_words) in HUB.items():
    DATASETS.register(_name)(hub_source(_name, _row, *_words))
