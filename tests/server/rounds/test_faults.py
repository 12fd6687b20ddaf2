"""What happens to real machines: cables, newcomers, wrong keys, other code; over TLS."""

import pytest
from machines import last_round, rows
from processes import until
from three_nodes import SETTINGS, three_nodes, words_of

pytestmark = [pytest.mark.deployment, pytest.mark.soak]


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with three_nodes(tmp_path_factory.mktemp("federation")) as machines:
        yield machines


def test_a_run_that_fails_has_a_status_that_says_so(federation):
    settings = {**SETTINGS, "min-clients": 9, "num-clients": 9, "wait-timeout": 5}
    assert federation.run("failing", settings).wait(400) == 2
    assert "ended as finished:failed" in federation.output_of("failing")


def test_a_site_of_other_source_files_is_refused_and_gets_nothing(federation):
    """A node runs the code that the server sent; here its operator changes a file of it."""
    federation.join("other", "--set", "site=other", "--set", "num-partitions=3")
    four = {**SETTINGS, "num-rounds": 1, "min-clients": 4}
    assert federation.run("before", four).wait(400) == 0, federation.output_of("before")
    (app,) = (federation.folder / "other" / "flwr" / "apps").iterdir()
    with (app / "client" / "site" / "site.py").open("a") as file:
        file.write("# not what the server runs\n")
    before = federation.proxies["other"].counted()[1]
    assert federation.run("after", SETTINGS).wait(400) == 0, federation.output_of("after")
    folder = federation.runs / "after"
    refused = rows(folder, "SELECT DISTINCT site, reason, detail FROM refusals")
    assert [row[:2] for row in refused] == [("other", "introduction")]
    assert refused[0][2].startswith("other source files: ")
    sent = "SELECT DISTINCT kind, payload FROM traffic WHERE site = 'other' AND direction = 'down'"
    assert rows(folder, sent) == [("control", 0)]
    code = sum(file.stat().st_size for file in app.rglob("*") if file.is_file())
    more = federation.proxies["other"].counted()[1] - before - code  # Flower brings it every run
    assert more < 60_000  # nothing of the model, whose parameters alone take 0.5 MB
    node = federation.nodes.pop("other")
    node.terminate()
    node.wait(60)
    federation.join("other", "--set", "site=other", "--set", "num-partitions=3")  # code comes anew
    assert federation.run("mended", four).wait(400) == 0, federation.output_of("mended")
    federation.nodes.pop("other").terminate()


def test_nodes_that_are_killed_cut_off_or_late_end_with_the_servers_digest(federation):
    settings = {**SETTINGS, "num-rounds": 20, "min-clients": 1, "round-timeout": 45}
    folder, command = federation.runs / "faults", federation.run("faults", settings)
    until(lambda: last_round(folder) >= 1, "round 1")
    federation.kill("n0")
    federation.net.cut("n1")
    cut = last_round(folder)
    until(lambda: last_round(folder) >= cut + 2, "two rounds without it")
    federation.net.mend("n1")
    federation.join("n0", *words_of(federation, 0))
    until(lambda: last_round(folder) >= 9, "round 9")
    federation.join("late", "--set", "site=late", "--set", "num-partitions=3")
    assert command.wait(900) == 0, federation.output_of("faults")
    there = {site for (site,) in rows(folder, LAST)}
    assert there == {"0", "1", "2", "late"}  # a contribution counts only with the server's digest
    first = rows(folder, JOINED)[0]
    entries = sum(len(p) + 4 for (p,) in rows(folder, BEFORE.format(first[0])))
    assert 0 <= first[1] - entries <= 80  # a request's own bytes: no snapshot is that small


LAST = "SELECT site FROM contributions WHERE round = (SELECT max(round) FROM entries)"
JOINED = (
    "SELECT round, payload FROM traffic WHERE site = 'late' AND direction = 'down' "
    "AND kind != 'control' ORDER BY id LIMIT 1"
)
BEFORE = "SELECT payload FROM entries WHERE round < {}"


def test_nodes_that_may_not_join_are_told_why(federation):
    """A key that nobody registered, and the certificate of another authority."""
    other = federation.make_certificates("other") / "ca.crt"
    patience = ["--patience", "10"]
    federation.join("stranger", *patience, "--set", "site=stranger", register=False)
    federation.join("misled", *patience, "--set", "site=misled", ca=other)
    for name, reason in (
        ("stranger", "Failed to activate SuperNode"),
        ("misled", "ertificate verify failed"),
    ):
        assert federation.nodes[name].wait(400) == 2
        assert reason in federation.output_of(name)
        assert federation.proxies[name].counted()[1] < 20_000  # nothing of the model
