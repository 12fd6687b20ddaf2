"""The card of a saved model: the hub reads its front matter, and its reader can make it again."""

import re
import shlex
from contextlib import closing

import pytest
import yaml
from federation import config
from huggingface_hub import ModelCard

import dandelion
from dandelion.engines.local import run_local
from server.ledger.ledger import Ledger
from server.ledger.reader import LedgerReader
from server.ledger.records import Refusal
from server.ledger.run_folder import LEDGER, read_config
from server.pages.model_card import (
    MEASURED,
    PIPELINES,
    base_model_of,
    front_matter,
    license_of,
    model_card,
)
from shared.config.schema import Config
from shared.tasks.task import TASKS

SITE = "Clinic of Dr X"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = run_local(
        config(
            tmp_path_factory.mktemp("runs"), name="carded", save_model=True, num_rounds=2,
            eval_interval=1, model_license="mit",
        )
    )  # fmt: skip
    with closing(Ledger.open(folder / LEDGER)) as ledger:
        ledger.note([], [Refusal(1, SITE, "bad reply", "")])
    return folder


def card_of(folder, round_=2):
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        return model_card(folder, ledger, read_config(ledger), round_)


def commands(text):
    block = text.partition("## How to reproduce it")[2].partition("```\n")[2].partition("```")[0]
    return [shlex.split(line)[1:] for line in block.splitlines()]


def test_the_hub_reads_the_front_matter(folder):
    card = ModelCard.load(folder / "model" / "README.md")
    data, (result,) = card.data.to_dict(), card.data.eval_results
    assert (data["license"], data["library_name"]) == ("mit", "transformers")
    assert data["pipeline_tag"] == "text-generation"
    assert "base_model" not in data  # byte-gpt starts from random numbers
    assert "federated-learning" in data["tags"]
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        assert result.metric_value == pytest.approx(ledger.evaluations()[-1].loss, abs=1e-6)
        assert ledger.chain(2).hex() in card.text
        assert ledger.digest(2).hex() in card.text
        assert ledger.header("base").hex() in card.text


@pytest.mark.parametrize("task", list(TASKS.names()))
def test_every_task_has_its_name_on_the_hub(task):
    assert PIPELINES[task]


def test_a_run_that_measures_nothing_is_not_tagged_as_zeroth_order(folder):
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        config = read_config(ledger)
        assert MEASURED in front_matter(folder, ledger, config, 2)
        assert MEASURED not in front_matter(folder, ledger, config.replace(mode="fo"), 2)


def test_a_card_names_neither_a_site_nor_a_folder_of_this_machine(folder):
    text = card_of(folder)
    assert SITE not in text
    assert "1 replies were refused" in text
    assert str(folder.parent) not in text
    assert "output-dir" not in text


def test_a_folder_of_data_is_named_without_its_path(folder, tmp_path):
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        own = read_config(ledger).replace(dataset=str(tmp_path / "notes"))
        text = model_card(folder, ledger, own, 2)
    assert "dataset=notes" in text
    assert str(tmp_path) not in text


def test_its_commands_make_the_same_model(folder, tmp_path, monkeypatch):
    first, second = commands(card_of(folder))
    monkeypatch.chdir(tmp_path)
    pairs = [word for word in first if "=" in word]
    settings = dict(pair.split("=", 1) for pair in pairs)
    settings = {key: yaml.safe_load(value) for key, value in settings.items()}
    again = dandelion.run(name="again", progress=False, **settings)
    assert first[:3] == ["run", "--name", "again"]
    assert second == ["ledger", "replay", "runs/again", "--round", "2", "--out", "model"]
    assert again.model().digest in card_of(folder)


def test_a_replayed_model_has_the_card_of_its_round(folder, tmp_path):
    model = dandelion.load_run(folder).replay(1)
    text = (model.save(tmp_path / "first") / "README.md").read_text()
    assert model.digest in text
    assert "--round 1 --out model" in text
    assert "after round 1 of a run" in text
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        assert ledger.chain(1).hex() in text
        assert ledger.chain(2).hex() not in text


@pytest.mark.parametrize(
    ("settings", "license_", "base"),
    [
        ({"model": "smollm2-135m"}, "apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ({"model": "smollm2-135m", "model-license": "other"}, "other",
         "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ({"model": "byte-gpt"}, None, None),
        ({"model": "owner/name"}, None, "owner/name"),
        ({"model": "owner/name/file.gguf"}, None, "owner/name"),
        ({"app": "my.module:problem"}, None, None),
    ],
)  # fmt: skip
def test_licence_and_base_model_are_those_that_are_known(settings, license_, base):
    assert (license_of(Config(settings)), base_model_of(Config(settings))) == (license_, base)


def test_the_licence_of_a_folder_is_that_of_its_own_card(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    assert license_of(Config({"model": str(tmp_path)})) == "mit"
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert license_of(Config({"model": str(tmp_path)})) is None


def test_without_a_licence_the_card_says_so(folder):
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        text = model_card(folder, ledger, read_config(ledger).replace(model_license=""), 2)
    assert "No licence has been chosen" in text
    assert not re.search(r"^license:", text, re.M)
