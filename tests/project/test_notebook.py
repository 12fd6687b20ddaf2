"""The notebook runs from its first cell to its last, and shows what it says."""

import os

import pytest
from pages import ROOT

FILE = ROOT / "examples" / "first_run.ipynb"
nbformat = pytest.importorskip("nbformat")


def read():
    return nbformat.read(FILE, as_version=4)


def test_the_notebook_is_stored_without_outputs():
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert len(cells) > 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_every_cell_of_the_notebook_works(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    notebook = read()
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    by_source = {cell.source: cell.get("outputs", []) for cell in notebook.cells}
    first, last = eval(by_source[LOSSES][0]["data"]["text/plain"], {})
    assert last < first
    assert "image/png" in by_source["run.plot()"][0]["data"]
    assert (tmp_path / "model-10" / "model.safetensors").exists()
    assert by_source[cell_with(by_source, "longer.rounds")][-1]["data"]["text/plain"] == "25"


LOSSES = 'run.summary["evaluation_loss_first"], run.summary["evaluation_loss_last"]'


def cell_with(cells, text):
    """The source of the one cell that has a text."""
    (source,) = [source for source in cells if text in source]
    return source
