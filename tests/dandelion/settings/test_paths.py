"""Paths in settings are absolute, and ``~`` is the home folder; names keep their meaning."""

import os
import shutil
import tomllib
from contextlib import closing

import pytest
import small_models
from rich.console import Console

from client.site.node_config import NodeConfig
from dandelion.api.ledgers import ledger_of
from dandelion.cli.client import node_config
from dandelion.cli.ledger import verify
from dandelion.deployment.deploy_home import Home
from dandelion.engines.flower_simulation import run_flower
from dandelion.engines.local import run_local
from dandelion.settings.gather import gather, read_pairs, resolve_paths
from server.ledger.reader import LedgerReader
from server.ledger.run_folder import run_folder
from shared.base.errors import ConfigError
from shared.base.files import cache_folder
from shared.training.validate import configure

SMALL = ["num-clients=2", "num-rounds=1", "queries=1", "block-size=8", "zo-batch-size=1",
         "eval-blocks=2", "save-model=false"]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder that is the home too, with a model and data in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))
    small_models.causal(tmp_path / "m" / "llama")
    (tmp_path / "notes").mkdir()
    for name in "abc":
        (tmp_path / "notes" / f"{name}.txt").write_text("the film was good " * 20)
    return tmp_path


@pytest.mark.parametrize("key", ["model", "init-from", "dataset", "eval-dataset", "bp-dataset"])
def test_what_is_there_is_named_from_the_root(here, key):
    for text in ("notes", "./notes", "~/notes", f"{here}/notes"):
        assert read_pairs([f"{key}={text}"]) == {key: str(here / "notes")}


@pytest.mark.parametrize("key", ["output-dir", "resume"])
def test_folders_to_come_are_too(here, key):
    assert read_pairs([f"{key}=~/runs"]) == {key: str(here / "runs")}
    assert resolve_paths({key: "runs"}) == {key: str(here / "runs")}


def test_names_keep_their_meaning_and_other_settings_are_no_paths(here, caplog):
    given = {"model": "byte-gpt", "dataset": "topics", "run-name": "notes", "mode": "zo",
             "eval-dataset": "owner/name", "bp-dataset": ""}  # fmt: skip
    assert resolve_paths(given) == given
    assert not caplog.text
    for name in ("byte-gpt", "topics"):
        (here / name).mkdir()
    assert resolve_paths(given) == given
    assert "the one here is ./topics" in caplog.text
    assert "the one here is ./byte-gpt" in caplog.text


def test_settings_of_a_file_and_of_the_home_folder_are_resolved(here):
    (here / "run.toml").write_text('model = "m/llama"\n[data]\ndataset = "~/notes"\n')
    config = gather(here / "run.toml", ["output-dir=~/runs", *SMALL])
    assert config.model.name == str(here / "m" / "llama")
    assert config.data.dataset == str(here / "notes")
    assert run_folder(config.replace(run_name="x")) == here / "runs" / "x"
    assert not (here / "~").exists()


def test_the_cache_is_in_the_home_folder(here, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", "~/kept")
    assert cache_folder() == here / "kept"


def test_a_missing_folder_is_refused_by_the_command_that_reads_it(here):
    for pair in ("dataset=/none/such", "eval-dataset=~/none", "bp-dataset=./none"):
        with pytest.raises(ConfigError, match=r"none.* is no folder here"):
            gather(None, [pair])


def test_a_site_with_its_own_data_needs_no_folder_of_the_server():
    assert configure({"dataset": "/none/such"}).data.dataset == "/none/such"


def test_a_ledger_is_verified_from_any_folder_after_the_data_have_gone(here, monkeypatch, capsys):
    config = gather(None, ["model=m/llama", "dataset=notes", "output-dir=r", "run-name=gone",
                           *SMALL])  # fmt: skip
    folder = run_local(config)
    with closing(LedgerReader.open(folder / "ledger.sqlite")) as ledger:
        recorded = tomllib.loads(ledger.header("config").decode())
    assert recorded["model"] == str(here / "m" / "llama")
    shutil.move(here / "notes", here / "moved")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    verify(folder)
    assert "1 rounds replayed, 2 digests equal" in capsys.readouterr().out
    with ledger_of(folder) as ledger:
        assert ledger.last_round == 1


def test_more_sites_than_the_data_can_be_dealt_to_are_refused_at_once(here):
    pairs = ["model=m/llama", "dataset=notes", "output-dir=r", *SMALL, "num-clients=50"]
    for run in (run_local, lambda config: run_flower(config, Console(quiet=True))):
        with pytest.raises(ConfigError, match="num-clients = 50: between 1 and 27 shards"):
            run(gather(None, pairs))
    with pytest.raises(ConfigError, match=r"num-clients = 5: the natural rule .* 3 groups"):
        run_local(gather(None, [*pairs, "num-clients=5", "run-name=five"]))


def test_a_nodes_own_data_are_looked_for_before_it_joins(here):
    home = Home.at(here / "node")
    assert node_config(["site=a", f"data={here}/notes"], home)["data"] == f"{here}/notes"
    with pytest.raises(ConfigError, match="none' is no folder here"):
        node_config(["site=a", f"data={here}/none"], home)
    assert NodeConfig.of({"site": "a", "data": os.sep}).data == os.sep
