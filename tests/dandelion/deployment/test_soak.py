"""Two hundred rounds with a fault every few seconds: the same bits, and nothing is left behind.

Ten minutes at most on two quiet cores; DANDELION_SOAK_ROUNDS says another number of rounds. The
same with ``privacy = shared``: three sites with secrets of their own, whose sums all are needed.
"""

import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import processes
import pytest
from machines import Federation, destroy, last_round, rows
from sealed_federation import Silence
from sealed_nodes import run_twin, write_roster
from three_nodes import SETTINGS, local_digest, partition

from dandelion.api.ledgers import verify_ledger
from server.ledger.ledger import Ledger

pytestmark = [pytest.mark.deployment, pytest.mark.soak]

ROUNDS = int(os.environ.get("DANDELION_SOAK_ROUNDS", "200"))
ENOUGH = 100  # rounds, for every fault to have its turn
SOAK = {**SETTINGS, "num-rounds": ROUNDS, "learning-rate": 0.002, "num-clients": 2,
        "min-clients": 2, "staleness": 1, "max-skipped-rounds": 1000, "snapshot-interval": 50,
        "resend-after": 8}  # fmt: skip
SEALED = {**SOAK, "num-clients": 3, "min-clients": 3, "privacy": "shared", "privacy-noise": 1.0,
          "privacy-clip": 40.0}  # fmt: skip
WATCHED = ("flower-superlink", "flwr-serverapp", "flower-supernode", "flower-superexec",
           "forkserver", "client\0guard")  # fmt: skip
MORE_BYTES, MORE_FILES = 48 << 20, 12  # what a process may gain after its first half minute


@dataclass
class Soak:
    """A run under faults; its server side is started again whenever it is gone."""

    federation: Federation
    chance: random.Random
    settings: dict[str, object]
    joined: dict[str, list[str]]  # what was typed at each node, by its name
    done: list[str] = field(default_factory=list)
    deck: list[Callable[["Soak"], None]] = field(default_factory=list)  # faults to come
    rest: int = 1  # no fault before this round

    def start(self) -> None:
        """Begin."""
        for name, words in self.joined.items():
            self.federation.join(name, *words)
        self.command = self.federation.run("soak", self.settings)

    @property
    def round(self) -> int:
        return last_round(self.federation.runs / "soak")

    def go_on(self) -> None:
        """Resume where the run's command has ended."""
        if self.command.poll() is not None:
            self.command = self.federation.resume("soak")

    def fault(self) -> None:
        """Something happens, unless the last thing is not overcome yet."""
        if self.round >= self.rest:
            if not self.deck:
                self.deck = [what for what, (times, _) in FAULTS.items() for _ in range(times)]
                self.chance.shuffle(self.deck)
            what = self.deck.pop()
            what(self)
            self.done.append(what.__name__)
            print(f"round {self.round}: {what.__name__}", flush=True)
            self.rest = self.round + FAULTS[what][1]


def cable(soak: Soak) -> None:
    """A node is cut off for a moment."""
    name = soak.chance.choice(["n0", "n1"])
    soak.federation.net.cut(name)
    time.sleep(soak.chance.uniform(0.3, 2.0))
    soak.federation.net.mend(name)


def worker(soak: Soak) -> None:
    """A node's guard is killed."""
    destroy(soak.federation.workers("n1"))


def executor(soak: Soak) -> None:
    """What starts a node's ClientApps is killed, and with it what it has started."""
    destroy(processes.of(soak.federation.folder / "n1", "flower-superexec"))


def server(soak: Soak) -> None:
    """The server process is killed, and the run resumed."""
    soak.federation.kill_server("flwr-serverapp")
    destroy([soak.command.pid])
    soak.command.wait()


def superlink(soak: Soak) -> None:
    """The SuperLink is killed."""
    soak.federation.kill_server("flower-superlink")


def node(soak: Soak) -> None:
    """A node is stopped as an operator stops it, and started again."""
    process = soak.federation.nodes.pop("n1")
    process.terminate()
    process.wait(60)
    soak.federation.join("n1", *soak.joined["n1"])


# how often in a deck, and how many rounds must be committed before the next one
FAULTS = {cable: (10, 1), worker: (6, 2), executor: (2, 2), server: (3, 6), superlink: (2, 6),
          node: (1, 6)}  # fmt: skip


@pytest.fixture
def private(tmp_path, monkeypatch):
    """Sockets and temporary files of this test alone; a socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="soak-") as short:
        for name, folder in (("XDG_RUNTIME_DIR", "run"), ("TMPDIR", "tmp")):
            Path(short, folder).mkdir(mode=0o700)
            monkeypatch.setenv(name, str(Path(short, folder)))
        (tmp_path / "short").symlink_to(short)
        yield tmp_path


def left_behind(short: Path) -> set[str]:
    """Sockets, and temporary files but for PyTorch's cache."""
    left = [*short.glob("run/**/*.sock"), *short.glob("tmp/*")]
    return {path.name for path in left if not path.name.startswith("torchinductor_")}


class SkippedToo(Silence):
    """The network of a twin: nobody adds up in the attempts that a run has skipped."""

    def __init__(self, config, skipped):
        super().__init__(config, range(config.federation.num_clients))
        self.skipped = skipped

    def _is_lost(self, site, payload):
        about = tuple(int.from_bytes(payload[at : at + 4], "little") for at in (4, 8))
        return super()._is_lost(site, payload) and about in self.skipped


def sealed_nodes(folder: Path) -> dict[str, dict[str, object]]:
    """What three sites are told, with secrets of their own and a roster of them all."""
    homes = {f"n{number}": folder / f"n{number}" for number in range(3)}
    roster = write_roster(folder / "roster.toml", homes)
    return {
        name: {"site": name, "partition-id": number, "num-partitions": 3, "roster": str(roster)}
        for number, name in enumerate(homes)
    }


def sealed_digest(folder: Path, federation: Federation) -> str:
    """What the run must have ended with; its skipped attempts have drawn fresh noise."""
    run = federation.runs / "soak"
    skips = [round_ for (round_,) in rows(run, "SELECT round FROM skips ORDER BY id")]
    skipped = {(round_, skips[:at].count(round_)) for at, round_ in enumerate(skips)}
    nodes = [
        own | {"privacy-home": str(federation.folder / name / "privacy")}
        for name, own in sealed_nodes(federation.folder).items()
    ]
    ledger = Ledger.open(run / "ledger.sqlite")
    assert verify_ledger(ledger).sums == ROUNDS
    ledger.close()
    return run_twin(folder, run, nodes, lambda config: SkippedToo(config, skipped)).digest


def expected_digest(folder: Path, soak: Soak) -> str:
    """The digest of the same run in this process."""
    if soak.settings is SEALED:
        return sealed_digest(folder, soak.federation)
    return local_digest(folder, soak.settings)


def make_soak(folder: Path, settings: dict[str, object], seed: int) -> Soak:
    """A federation of two sites, or of three that seal, none of which is started yet."""
    folder.mkdir()
    joined = {f"n{number}": partition(number, 2) for number in range(2)}
    if settings is SEALED:
        joined = {
            name: [word for key, value in own.items() for word in ("--set", f"{key}={value}")]
            for name, own in sealed_nodes(folder).items()
        }
    return Soak(Federation(folder), random.Random(seed), settings, joined)


@pytest.mark.parametrize("settings", [SOAK, SEALED], ids=["plain", "sealed"])
def test_two_hundred_rounds_under_faults(private, settings):
    seed = random.randrange(1 << 32)
    soak = make_soak(private / "federation", settings, seed)
    federation, used = soak.federation, processes.Resources()
    progress = processes.Progress()
    try:
        federation.up()
        soak.start()
        processes.until(lambda: soak.round >= 1, "round 1")
        began = time.monotonic()
        while soak.round < SOAK["num-rounds"]:
            for word in WATCHED:  # before the end, which draws pictures
                used.look(word, processes.of(federation.folder, word))
            time.sleep(soak.chance.uniform(2.0, 5.0))
            soak.fault()
            soak.go_on()
            progress.look(soak.round, f"rounds, seed {seed}")
        seconds = time.monotonic() - began
        assert soak.command.wait(120) == 0, federation.output_of("soak")
    finally:
        federation.end()
    print(f"{seconds:.0f} s, {len(soak.done)} faults, seed {seed}; gained at most {used.most()}")
    assert federation.digest("soak") == expected_digest(private, soak)
    assert ROUNDS < ENOUGH or set(soak.done) == {what.__name__ for what in FAULTS}
    assert soak.done
    assert not processes.of(federation.folder)
    assert left_behind((private / "short").resolve()) == set()
    assert not [p for p in federation.folder.rglob("*") if p.is_file() and p.name.startswith(".")]
    assert {kind for kind, (size, _) in used.most().items() if size >= MORE_BYTES} == set()
    assert {kind for kind, (_, files) in used.most().items() if files >= MORE_FILES} == set()
