"""The walk-through of private sites over TLS: two sites, their own data, and a third run refused.

The commands are those of docs/tutorials/private-sites.md, typed at a server and two nodes. Then
somebody who reaches the server sends the sites code of another kind.
"""

import re
import shutil
from pathlib import Path

import pytest
from machines import ROOT, Federation, last_round
from processes import until
from sealed_nodes import make_notes

pytestmark = pytest.mark.deployment
PAGE = ROOT / "docs" / "tutorials" / "private-sites.md"
SPY = """
import json
from pathlib import Path
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
app = ClientApp()

@app.query()
@app.train()
def spy(message: Message, context: Context) -> Message:
    Path({out!r}).write_text(json.dumps(dict(context.node_config)))
    raise RuntimeError("done")
"""


def settings_of(command: str) -> list[str]:
    """The ``--set`` words of a command on the page."""
    line = next(line for line in PAGE.read_text().splitlines() if line.startswith(command))
    return [word for pair in re.findall(r"--set (\S+)", line) for word in ("--set", pair)]


@pytest.fixture
def federation(tmp_path):
    pytest.importorskip("dp_accounting")
    started = Federation(tmp_path)
    try:
        started.up()
        for name in ("ward-3", "ward-4"):
            typed = settings_of("dandelion client join")[1::2]
            words = [pair for pair in typed if not pair.startswith(("site=", "data="))]
            words += [f"site={name}", f"data={make_notes(tmp_path / f'data-{name}')}"]
            started.join(name, *(word for pair in words for word in ("--set", pair)))
        yield started
    finally:
        started.end()


def walk(federation: Federation, name: str) -> int:
    """Type the page's run; small, and without the waits of a run that must stall."""
    words = settings_of("dandelion server run")
    given = dict(pair.split("=", 1) for pair in words[1::2])
    given |= {"block-size": "16", "eval-blocks": "4", "dataset": "topics", "save-model": "false",
              "max-skipped-rounds": "2", "preflight-rounds": "0"}  # fmt: skip
    return federation.run(name, given).wait(600)


def test_two_runs_fit_the_third_is_refused_and_spying_code_gets_a_socket(federation, tmp_path):
    assert walk(federation, "first") == 0, federation.output_of("first")
    assert walk(federation, "second") == 0, federation.output_of("second")
    assert walk(federation, "third") == 2
    assert last_round(federation.runs / "third") < 20
    refused = federation.output_of("third")
    assert "refused by policy: max-epsilon" in refused
    assert str(tmp_path / "data-ward-3") not in refused  # the site's own log alone names its data
    own = " ".join((federation.folder / "ward-3" / "guard.log").read_text().split())
    assert re.search(r"epsilon 1\.\d+ of 2 at delta 1e-05 · unit: one example", own)
    assert "refused by policy: max-epsilon:" in own
    spy_on(federation, out := tmp_path / "spied.json")
    socket = re.findall(r'^\{"guard": "([^"]+)"\}$', out.read_text())
    assert len(socket) == 1
    assert Path(socket[0]).is_socket()


def spy_on(federation: Federation, out: Path) -> None:
    """Send the sites a run whose ClientApp notes all that it is given of a node."""
    copy = federation.folder / "spy"
    for name in ("client", "server", "shared", "dandelion"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    (copy / "client" / "app.py").write_text('"""A spy."""\n' + SPY.format(out=str(out)))
    settings = {"num-clients": 2, "min-sites": 2, "num-rounds": 1, "wait-timeout": 60}
    pairs = [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]
    federation.start(
        federation.net.server(), "server", "run", "--home", str(federation.home), *pairs,
        log="spy.run", root=copy,
    )  # fmt: skip
    until(lambda: out.exists() and out.read_text().endswith("}"), "the spy has run")
