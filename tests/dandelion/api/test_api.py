"""What ``import dandelion`` offers: runs as objects whose numbers are the ledger's."""

import inspect
import re
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from small_config import SMALL

import dandelion
from shared.base.errors import LedgerError, UnknownNameError

SMALL_RUN = {key.replace("-", "_"): value for key, value in SMALL.items()} | {"progress": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run of three rounds."""
    return dandelion.run(name="run", output_dir=tmp_path_factory.mktemp("runs"), **SMALL_RUN)


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, dandelion; dir(dandelion); "
        "heavy = {'torch', 'transformers', 'flwr', 'pandas', 'matplotlib', 'rich', 'typer'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_public_names_are_those_of_the_table_and_each_is_where_it_says():
    assert set(dandelion.__all__) == {*dandelion._PUBLIC, "__version__"}
    assert dir(dandelion) == sorted(dandelion.__all__)
    for name, module in dandelion._PUBLIC.items():
        assert getattr(dandelion, name) is getattr(import_module(module), name)
        assert getattr(dandelion, name).__module__ == module
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = dandelion.train
    assert re.fullmatch(r"\d+\.\d+\.\d+", dandelion.__version__)


def test_using_a_name_does_not_hide_it_behind_a_package_of_the_same_name():
    for name in dandelion._PUBLIC:
        assert not inspect.ismodule(getattr(dandelion, name))
        with pytest.raises(ModuleNotFoundError):
            import_module(f"dandelion.{name}")


def test_a_run_is_what_its_ledger_says(run):
    assert run.folder.name == "run"
    assert run.rounds == run.summary["rounds"] == 3
    assert run.config.zo.queries == SMALL["queries"]
    assert list(run.metrics["round"]) == [1, 2, 3]
    assert (run.metrics["forwards"] > 0).all()
    assert str(run.metrics["timestamp"].dtype).endswith("UTC]")
    assert list(run.evaluations["round"]) == [0, 3]
    assert run.evaluations["loss"].iloc[-1] == run.summary["evaluation_loss_last"]
    assert "accuracy" not in run.evaluations
    assert repr(run) == f"Run('{run.folder}', 3 rounds)"


def test_a_run_is_verified_and_its_last_model_has_its_digest(run):
    check = run.verify()
    assert (check.rounds, check.digests, check.unrecorded, check.bridged) == (3, 4, (), 0)
    assert check.digest == run.model().digest == run.summary["digest"]


def test_a_run_that_was_changed_is_not_verified(run, tmp_path):
    import shutil
    import sqlite3

    folder = shutil.copytree(run.folder, tmp_path / "changed")
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        ledger.execute("UPDATE digests SET digest = zeroblob(16) WHERE round = 2")
    ledger.close()
    with pytest.raises(dandelion.DandelionError, match="round 2"):
        dandelion.load_run(folder).verify()


def test_a_replayed_model_is_the_one_of_its_round(run, tmp_path):
    first, last = run.replay(0), run.replay(3)
    assert (first.round, last.round) == (0, 3)
    assert first.digest != last.digest
    names = list(last.parameters)
    assert names == list(first.parameters)
    assert any(not torch.equal(first.parameters[k], last.parameters[k]) for k in names)
    tokens = torch.from_numpy(last.tokenizer.encode("abc"))[None]
    assert last.module(tokens).logits.shape == (1, 3, last.tokenizer.size)
    saved = last.save(tmp_path / "model")
    assert (saved / "config.json").is_file()
    with pytest.raises(dandelion.ConfigError, match="round: 0 to 3 expected, got 4"):
        run.replay(4)


def test_a_run_leaves_the_threads_of_the_process_alone(tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        dandelion.run(output_dir=tmp_path, **SMALL_RUN | {"num_rounds": 1}).verify()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_a_caller_has_switched_on_in_torch_changes_no_run(tmp_path):
    settings = SMALL_RUN | {"num_rounds": 2, "mode": "fo", "output_dir": tmp_path}
    expected = dandelion.run(name="plain", **settings).summary["digest"]
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        assert dandelion.run(name="inside", **settings).summary["digest"] == expected
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_inference_mode_enabled()
        assert torch.get_default_device().type == "meta"
    with torch.no_grad():
        assert dandelion.load_run(tmp_path / "plain").verify().digest == expected
        assert not torch.is_grad_enabled()


def test_a_run_is_plotted_into_a_file_and_into_a_figure(run, tmp_path, rendered):
    figure = run.plot(tmp_path / "loss.svg")
    assert (tmp_path / "loss.svg").read_text().startswith("<?xml")
    assert figure.axes[0].get_xlabel() == "round"


def test_a_run_is_a_table_in_a_notebook(run):
    html = run._repr_html_()
    assert run.summary["digest"] in html
    assert html.count("<tr>") > 8


def test_a_run_that_stopped_is_read_and_resumed_from_python(run, tmp_path):
    short = dandelion.run(name="short", output_dir=tmp_path, **SMALL_RUN | {"num_rounds": 2})
    again = dandelion.resume(short.folder, num_rounds=3, progress=False)
    assert again == short
    assert again.summary["digest"] == run.summary["digest"]
    (again.folder / "summary.json").unlink()
    with pytest.raises(dandelion.ConfigError, match=r"dandelion\.resume"):
        _ = again.summary
    assert again._repr_html_() == f"<b>{again!r}</b>".replace("'", "&#x27;")


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"querys": 3}, dandelion.ConfigError, "unknown setting 'querys'; did you mean queries"),
        ({"queries": "3"}, dandelion.ConfigError, "queries: int expected, got str '3'"),
        ({"engine": "locl"}, UnknownNameError, "unknown engine 'locl'"),
        ({"preset": "sst2"}, UnknownNameError, "unknown preset 'sst2'"),
        ({"name": "a", "run_name": "b"}, dandelion.ConfigError, "same setting"),
        ({"resume": "runs/a"}, dandelion.ConfigError, r"dandelion\.resume\(folder\)"),
        ({"zo": {"eps": 0.1}, "eps": 0.2}, dandelion.ConfigError, "eps is given twice"),
        ({"num_clients": 2, "min_sites": 3}, dandelion.ConfigError, "at most num-clients = 2"),
    ],
)
def test_what_cannot_be_a_run_is_refused_before_anything_is_written(
    settings, error, text, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=text):
        dandelion.run(**settings)
    assert not list(tmp_path.iterdir())


def test_a_run_can_be_resumed_only_as_itself(run, tmp_path):
    with pytest.raises(dandelion.ConfigError, match=r"a resumed run keeps \['seed'\]"):
        dandelion.resume(run.folder, seed=3)
    with pytest.raises(dandelion.ConfigError, match="did you mean num-rounds"):
        dandelion.resume(run.folder, num_round=3)
    with pytest.raises(dandelion.ConfigError, match="no run to resume"):
        dandelion.resume(tmp_path)
    with pytest.raises(LedgerError, match="no ledger there"):
        dandelion.load_run(tmp_path)


def test_a_run_starts_from_a_configuration_or_a_file_and_takes_what_numpy_gives(run, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[zo]\nqueries = 2\n")
    rate = np.float64(SMALL["learning-rate"])
    rest = SMALL_RUN | {"learning_rate": rate, "num_rounds": np.int64(3)}
    del rest["queries"]
    given = {"output_dir": tmp_path, **rest}
    assert dandelion.run(file, name="a", **given).summary["digest"] == run.summary["digest"]
    config = dandelion.Config(queries=2)
    assert dandelion.run(config, name="b", **given).summary["digest"] == run.summary["digest"]
    assert run.summary["digest"] == dandelion.run(run.config, name="c", output_dir=tmp_path,
                                                  progress=False).summary["digest"]  # fmt: skip


def test_progress_is_shown_on_standard_error_unless_it_is_not_wanted(tmp_path, capsys):
    given = SMALL_RUN | {"num_rounds": 1, "output_dir": tmp_path}
    dandelion.run(name="quiet", **given)
    assert capsys.readouterr() == ("", "")
    dandelion.run(name="loud", **given | {"progress": True})
    out, err = capsys.readouterr()
    assert out == ""
    assert "round 1/1" in err


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: dandelion.sweep({"queries": "12"}), "list of values of queries expected"),
        (lambda: dandelion.sweep({"lora_targets": ["a,b"]}), "without a comma expected"),
        (lambda: dandelion.sweep({"querys": [1, 2]}), "did you mean queries"),
        (lambda: dandelion.sweep({"queries": [1]}, trials=3), "trials = 3 without search"),
        (dandelion.sweep, "expected"),
        (lambda: dandelion.sweep(search={"eps": (1, 2, "lin")}), '"log"'),
        (lambda: dandelion.compare(["zo"], rates=0), "rates: at least 1 expected"),
        (lambda: dandelion.compare(["sgd"]), "unknown method 'sgd'"),
        (lambda: dandelion.compare(["zo"], querys=2), "did you mean queries"),
        (lambda: dandelion.compare(["zo"], of_method={"fo": {}}), "unknown method 'fo'"),
        (dandelion.compare, "known: "),
        (lambda: dandelion.preflight(querys=2), "did you mean queries"),
    ],
)
def test_what_cannot_be_tried_is_refused(call, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(dandelion.ConfigError, match=text):
        call()
