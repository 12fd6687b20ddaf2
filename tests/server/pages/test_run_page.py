"""The report of a run says what its ledger says, in one file that loads nothing."""

import json
import re
import shutil
from base64 import b64decode
from contextlib import closing

import numpy as np
import pytest
from browser import needs_browser, open_page
from federation import config
from small_tasks import task_settings
from typer.testing import CliRunner

from dandelion.cli.app import app
from dandelion.engines.local import run_local
from server.ledger.ledger import Ledger
from server.ledger.reader import LedgerReader
from server.ledger.records import LEFT_OUT, Refusal
from server.ledger.run_folder import LEDGER, read_config
from server.pages.facts import privacy_rows, setting_rows
from server.pages.run_page import run_page
from server.pages.sections import show_privacy
from server.reporting.class_choices import ClassChoices
from shared.config.schema import Config
from shared.privacy.accounting import Rounds, epsilon_of
from shared.tasks.task import TASKS
from shared.tasks.text_rules import WRITING

NAME = "<script>alert('site')</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of three rounds; a stranger was refused, and texts were written."""
    folder = run_local(config(tmp_path_factory.mktemp("runs"), name="a&b", eval_interval=1))
    with closing(Ledger.open(folder / LEDGER)) as ledger:
        refusals = [
            Refusal(2, NAME, "bad reply", f"{NAME}\x1b[2J"),
            Refusal(3, NAME, LEFT_OUT, "x"),
        ]
        ledger.note([], [*refusals, refusals[0]])
        ledger.record_scores(3, "", {"accuracy": 0.75})
    (folder / "samples.md").write_text("round 3\n> once </pre><script>\n")
    return folder


def text_of(folder):
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        return run_page(folder, ledger, read_config(ledger))


def test_every_run_ends_with_a_report(folder):
    text = (folder / "report.html").read_text()
    assert "<h1>Run a&amp;b</h1>" in text
    assert "No reply was refused." in text


def test_the_report_has_what_the_ledger_has(folder):
    text, summary = text_of(folder), json.loads((folder / "summary.json").read_text())
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        chain, run = ledger.chain(3).hex(), ledger.header("run").hex()
        losses = [e.loss for e in ledger.evaluations()]
        assert ledger.chain(2) != ledger.chain(3)
    for value in (summary["digest"], chain, run, f"{losses[0]:.4g} → {losses[-1]:.4g}", "0.75"):
        assert value in text
    for loss in losses:
        assert f'<td class="number">{loss:.4g}</td>' in text
    assert len(re.findall(r'<tr><th scope="row">\d</th><td>cpu</td>', text)) == 3
    assert "dandelion ledger verify RUN" in text


def test_what_peers_sent_is_text(folder):
    text = text_of(folder)
    assert "<script" not in text.lower()
    assert text.count("&lt;script&gt;alert(") >= 4  # refused, its detail, left out, a site
    assert r"\x1b[2J" in text
    assert "&gt; once &lt;/pre&gt;&lt;script&gt;\n" in text  # samples keep their lines


def test_refusals_of_one_kind_are_one_row(folder):
    row = re.search(r"<td>bad reply</td>(.*?)</tr>", text_of(folder))[1]
    assert row.startswith('<td class="number">2</td><td class="number">2</td>')


def test_classes_are_a_table_and_a_picture_in_the_page(folder, tmp_path):
    run = shutil.copytree(folder, tmp_path / "run")
    assert "Classes" not in text_of(run)
    names = ["good", "<b>bad"]
    choices = ClassChoices(names, np.array([[3, 1], [0, 4]]))
    choices.write(run)
    choices.draw(run)
    text = text_of(run)
    assert '<td class="number">0.75</td>' in text
    assert "&lt;b&gt;bad" in text
    png = re.search(r'<img src="data:image/png;base64,([^"]+)" alt="[^"]+', text)[1]
    assert b64decode(png) == (run / "confusion.png").read_bytes()


def test_the_report_loads_nothing(folder):
    text = text_of(folder)
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)=["'](?!#|data:,)""", text)
    assert "url(" not in text


def test_the_settings_are_those_that_were_changed_and_all(folder):
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        rows = {row.key: row for row in setting_rows(read_config(ledger))}
    changed = {key for key, row in rows.items() if row.is_changed}
    assert {"queries", "num-rounds", "max-samples", "run-name"} <= changed
    assert not {"seed", "mode", "eps", "momentum"} & changed
    assert rows["queries"].value == 2
    assert rows["momentum"].default == rows["momentum"].value


def test_the_command_writes_it_again_elsewhere(folder, tmp_path):
    out = tmp_path / "deep" / "page.html"
    done = CliRunner().invoke(app, ["report", str(folder), "--out", str(out)])
    assert done.exit_code == 0, done.exception
    assert done.output.strip() == str(out)
    assert out.read_text() == text_of(folder)


def test_a_run_that_has_not_finished_is_reported_as_far_as_it_is(tmp_path):
    cut = run_local(config(tmp_path, num_rounds=1))
    for file in ("summary.json", "shards.json", "report.html"):
        (cut / file).unlink()
    text = text_of(cut)
    assert "scope full;" in text  # the number of parameters is not known yet
    assert "not known here" in text


def test_what_privacy_cost_is_that_of_the_rounds_in_the_ledger(tmp_path, monkeypatch):
    pytest.importorskip("dp_accounting")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    private = {"privacy": "local", "privacy_noise": 2.0, "privacy_clip": 1.0}
    folder = run_local(config(tmp_path, num_rounds=2, **private))
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        rows, sizes = (
            privacy_rows(ledger, read_config(ledger)),
            [s.examples for s in ledger.sites()],
        )
    bits = {next(b for b in range(32) if size <= 2 << b) for size in sizes}
    assert {f"2 with batches at rate 1/{1 << each}" for each in bits} == {row[0] for row in rows}
    for each, row in zip(sorted(bits, reverse=True), rows, strict=True):
        epsilon = epsilon_of([Rounds(2, 2.0, each)], 1e-5)
        assert row[1] == f"ε = {epsilon:.3g}, δ = 1e-05, noise of 2 clips"
    assert sum(int(row[2]) for row in rows) == 3
    assert "no value" in text_of(folder)  # private sites send no loss


def complaints(file, tmp_path, width=1280):
    """What the console of a browser says of a page, which is then drawn as a picture."""
    picture = tmp_path / "page.png"
    options = (f"--window-size={width},900", f"--screenshot={picture}")
    opened = open_page(file.as_uri(), tmp_path / "profile", *options)
    assert picture.stat().st_size > 10_000
    return opened.complaints


@pytest.mark.slow
@needs_browser
def test_a_browser_complains_of_a_script_that_the_policy_of_a_report_refuses(folder, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(text_of(folder).replace("</body>", "<script>alert()</script></body>"))
    assert any("Content Security Policy" in line for line in complaints(file, tmp_path))


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_a_browser_shows_it_and_complains_of_nothing(folder, tmp_path, width):
    file = tmp_path / "page.html"
    file.write_text(text_of(folder))
    assert complaints(file, tmp_path, width) == []


@pytest.mark.slow
@needs_browser
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("task", TASKS.names())
def test_a_browser_shows_the_report_of_every_task(task, tmp_path):
    """Scores, samples and the picture of a confusion table are in it, as the task has them."""
    given = {key.replace("-", "_"): value for key, value in task_settings(task, tmp_path).items()}
    if task in WRITING:
        given |= {"sample_prompts": "1", "sample_tokens": 4}
    folder = run_local(config(tmp_path, **{**given, "num_clients": 2, "site_eval_fraction": 0.3}))
    text = (folder / "report.html").read_text()
    assert ("Samples" in text) == (task in WRITING)
    assert (folder / "confusion.png").is_file() == (task == "classification")
    unit = {"regression": "squared error", "language-modelling": "nats per token"}
    assert f"loss ({unit.get(task, 'nats per')}" in text
    assert complaints(folder / "report.html", tmp_path) == []


def test_of_sealed_sums_no_cost_is_computed(folder):
    with closing(LedgerReader.open(folder / LEDGER)) as ledger:
        text = show_privacy(ledger, Config({"privacy": "shared"})).html
    assert "privacy = shared: the server saw sums of sites alone" in text
    assert "without noise" not in text
    assert "ε" not in text
