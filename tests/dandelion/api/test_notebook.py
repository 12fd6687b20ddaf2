"""In a notebook a run shows how far it is, and its result is a table and a picture."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

CELLS = [
    "import dandelion",
    "run = dandelion.run(name='book', num_rounds=3, num_clients=2, queries=2, max_samples=20,\n"
    "                    eval_blocks=4)",
    "run",
    "run.plot()",
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The outputs of each cell."""
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    folder = str(tmp_path_factory.mktemp("book"))
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    return [cell.outputs for cell in notebook.cells]


@pytest.mark.slow
def test_a_run_shows_one_line_that_ends_with_its_last_round(outputs):
    lines = [each["data"]["text/html"] for each in outputs[1] if "data" in each]
    assert len(lines) == 1
    assert re.search(r"<pre.*>round 3/3  .*loss", lines[0])


@pytest.mark.slow
def test_a_run_is_shown_as_a_table_of_its_summary(outputs):
    (result,) = outputs[2]
    assert "<td style='text-align:left'>3 in " in result["data"]["text/html"]
    assert "held-out loss" in result["data"]["text/html"]


@pytest.mark.slow
def test_a_plot_is_shown_as_a_picture(outputs):
    assert any("image/png" in each.get("data", {}) for each in outputs[3])
