"""The page about other people's Flower apps: its snippets are one program, and it trains."""

import doctest
import re

import pytest
import torch
from app_federation import forget_processes, node
from pages import ROOT

import client.handlers.handlers
import server.strategies.zeroth_order
from dandelion import ZerothOrder
from dandelion.engines.local import LocalGrid

PAGE = ROOT / "docs" / "how-to" / "in-a-flower-app.md"


def snippets():
    return re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE.read_text(), re.M | re.S)


def test_the_page_trains_and_rebuilds_its_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    forget_processes()
    names = {"__name__": "page"}
    files = [name for name, _ in snippets()]
    assert files == ["client_app.py", "client_app.py", "server_app.py", "audit.py"]
    for name, code in snippets()[:3]:
        exec(compile(code, name, "exec"), names)  # the page's own code
    contexts = {2 + number: node(number) for number in range(3)}
    torch.manual_seed(0)
    names["server_app"](LocalGrid(names["client_app"], contexts), contexts[2])
    accuracy, refusals = capsys.readouterr().out.splitlines()[-1].split(" ", 1)
    assert float(accuracy) > 0.8
    assert refusals == "[]"
    exec(compile(snippets()[3][1], "audit.py", "exec"), names)
    assert {"run.sqlite", "initial.pt", "final.pt"} <= {each.name for each in tmp_path.iterdir()}


def test_the_table_has_the_defaults_of_the_strategy():
    strategy = ZerothOrder(model=torch.nn.Linear(2, 2))
    rows = re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", PAGE.read_text(), re.M)
    assert len(rows) >= 8
    for name, text in rows:
        assert str(getattr(strategy, name)) in (text, str(float(text)) if "e-" in text else text)


@pytest.mark.parametrize(
    "module", [client.handlers.handlers, server.strategies.zeroth_order], ids=lambda m: m.__name__
)
def test_examples_in_docstrings_run(module):
    result = doctest.testmod(module)
    assert (result.failed, result.attempted > 0) == (0, True)
