"""A run's folder is created or resumed, locked, and checked before anything is trained."""

import fcntl
import logging
import math
import secrets
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from server.ledger.ledger import Ledger
from server.ledger.reader import LedgerReader
from server.ledger.snapshots import Snapshots, follow_
from shared.base.errors import ConfigError, DivergedError, LedgerError, SnapshotError
from shared.base.files import write_atomically
from shared.config.schema import Config, to_toml, with_former_defaults
from shared.models.model import LanguageModel
from shared.modes.estimators import with_estimator
from shared.modes.mode import mode_of
from shared.problem.source import source_digest
from shared.protocol.run_request import RunRequest
from shared.replica.snapshot import encode_snapshot, load_snapshot_
from shared.training.components import effective_options, with_own_options
from shared.training.corpus import Corpus
from shared.training.oracle import Oracle

# A run folder has: the ledger, from which all else can be made again; the settings with which the
# run was started or resumed last; a file that the process which trains keeps locked; the folder
# ``snapshots``; and the files that ``server.reporting`` writes.
LOG = logging.getLogger("dandelion")
LEDGER, CONFIG, LOCK = "ledger.sqlite", "config.toml", "run.lock"
MOST_AT_ONCE = 100  # unnamed runs of one second in one folder
NAME_BYTES = 16
PRIVATE = 0o700  # of a run folder: what sites send tells of their data


@dataclass(frozen=True)
class OpenRun:
    """A run that is open for training, in this process alone.

    Invariant: the oracle's replica is at the ledger's last round. With ``server-replica = lazy`` it
    may be at an earlier one, and every entry between the two can be applied.
    """

    folder: Path
    config: Config
    ledger: Ledger
    oracle: Oracle
    name: bytes  # 16, random: names the run on the wire
    code: bytes  # 16, of the source files that server and sites must share

    def return_to(self, round_: int) -> None:
        """Bring the replica back to an earlier round of its lineage.

        Raises:
            GapError: no snapshot leads there, and gradients since the base model were dropped.
        """
        replica, snapshots = self.oracle.replica, Snapshots(self.ledger)
        newest = snapshots.latest(round_)
        if newest is not None and newest.round == round_:
            try:
                data, name = snapshots.read(round_), f"snapshot of round {round_}"
                return load_snapshot_(replica, data, self.name, name)
            except SnapshotError as error:
                LOG.warning("not used: %s", error)
                snapshots.forget(round_)
        fresh = Oracle.of(self.config).replica
        snapshots.restore_(fresh, self.name, round_)
        load_snapshot_(replica, encode_snapshot(fresh, self.name), self.name)

    def catch_up(self) -> None:
        """Bring the replica to the ledger's last round; compare or record each round's digest.

        Raises:
            DivergedError: a recorded digest is not that of the parameters which the ledger gives.
        """
        follow_(self.oracle.replica, self.ledger, self.ledger.last_round)


@contextmanager
def open_run(config: Config) -> Iterator[OpenRun]:
    """Create the run folder, or open the one to resume, and lock it.

    Raises:
        ConfigError: another process has the lock, the folder to create has a run, or the settings
            are not those of the run to resume.
        LedgerError: the ledger to resume is missing or damaged.
        DivergedError: model or seed give other parameters than the recorded ones.
    """
    folder = run_folder(config)
    if config.run.resume and not (folder / LEDGER).exists():
        raise ConfigError(f"{folder}: no run to resume; {LEDGER} expected in it")
    folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    if not config.run.resume:
        folder.chmod(PRIVATE)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{folder}: another process is at this run") from error
        run = _resume(folder, config) if config.run.resume else _create(folder, config)
        try:
            yield run
        finally:
            run.ledger.close()


def run_folder(config: Config) -> Path:
    """The absolute path of a run's folder; unless the run is named, it contains the time.

    A second one of the same second gets a number too.
    """
    if config.run.resume:
        return Path(config.run.resume).resolve()
    parent = Path(config.run.output_dir)
    if config.run.name:
        return (parent / config.run.name).resolve()
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    model = config.model.app.partition(":")[0] or Path(config.model.name).name
    name = f"{config.training.mode}-{model}-{stamp}"
    names = (name, *(f"{name}-{number}" for number in range(2, MOST_AT_ONCE)))
    return next((parent / each for each in names if not (parent / each).exists()), parent).resolve()


def read_config(ledger: LedgerReader) -> Config:
    """The configuration that a ledger's run was started with.

    Raises:
        LedgerError: it cannot be read, or is not a valid configuration.
    """
    try:
        settings = with_former_defaults(tomllib.loads(ledger.header("config").decode()))
        return with_own_options(Config(settings))
    except (ValueError, ConfigError) as error:
        raise LedgerError(f"{ledger.path}: table head, row config: {error}") from error


def check_base(ledger: LedgerReader, oracle: Oracle) -> None:
    """Compare an untrained model with the one that the run started from.

    Raises:
        DivergedError: the two differ.
    """
    if oracle.base != (base := ledger.header("base")):
        raise DivergedError(
            f"{ledger.path}: base model {base.hex()} expected, this one is {oracle.base.hex()}"
        )


def _create(folder: Path, config: Config) -> OpenRun:
    if (folder / LEDGER).exists():
        raise ConfigError(f"{folder}: a run is there; resume it, or choose another run-name")
    oracle, name = Oracle.of(config), _name_of(config)
    config = resolve_epochs(config, oracle.language_model)
    text = _config_bytes(config)
    write_atomically(folder / CONFIG, text)
    code = source_digest(config.model.app)
    header = {"run": name, "config": text, "base": oracle.base, "code": code}
    ledger = Ledger.create(folder / LEDGER, header)
    return OpenRun(folder, config, ledger, oracle, name, code)


def _name_of(config: Config) -> bytes:
    """What names the run on the wire: as its operator has signed, or chance."""
    request = config.run.request
    if not request:
        return secrets.token_bytes(NAME_BYTES)
    return bytes.fromhex(RunRequest.decode(request).claim.run)


def _resume(folder: Path, config: Config) -> OpenRun:
    ledger = Ledger.open(folder / LEDGER)
    try:
        return _restore(folder, config, ledger)
    except BaseException:
        ledger.close()
        raise


def _restore(folder: Path, config: Config, ledger: Ledger) -> OpenRun:
    """Check that a ledger is of this run, and bring a replica to its last round."""
    if changed := with_estimator(config).differences(read_config(ledger)):
        raise ConfigError(f"{folder}: cannot go on as another run: {'; '.join(changed)}")
    oracle = Oracle.of(config)
    check_base(ledger, oracle)
    config = resolve_epochs(config, oracle.language_model)
    name, last = ledger.header("run"), ledger.last_round
    for complaint in Snapshots(ledger).restore_(oracle.replica, name, last):
        LOG.warning("not used: %s", complaint)
    if (digest := ledger.digest(last)) is not None:
        oracle.replica.check(digest)
    code = source_digest(config.model.app)
    if ledger.header("code") != code:
        LOG.warning("the source files are not those that the run was started with")
    write_atomically(folder / CONFIG, _config_bytes(config))  # operational keys may be new
    LOG.info("resumed at round %d: %s", last, folder)
    return OpenRun(folder, config, ledger, oracle, name, code)


def _config_bytes(config: Config) -> bytes:
    """All settings as TOML, with what stands for defaults that may change: of options, ``auto``."""
    settings = with_estimator(config).to_run_config() | effective_options(config)
    return to_toml(settings | {"resume": ""}).encode()


def resolve_epochs(config: Config, model: LanguageModel) -> Config:
    """The configuration with ``epochs`` converted to ``num-rounds``; the same if it has none.

    Every round draws its examples anew, so an epoch shows each example once on average.

    Raises:
        ConfigError: the server does not know how many examples there are.
    """
    if not config.training.epochs:
        return config
    examples = len(Corpus.of(config, model).training)
    if not examples:
        raise ConfigError(
            f"epochs = {config.training.epochs} with app {config.model.app!r}: its sites have "
            "examples of their own, which the server cannot count: use num-rounds"
        )
    rounds = math.ceil(config.training.epochs * examples / examples_of_round(config, examples))
    return config.replace(num_rounds=max(1, rounds), epochs=0.0)


def examples_of_round(config: Config, examples: int) -> float:
    """Examples that all sites together measure or backpropagate in one round.

    ``examples`` are those of all sites of the run, of which each has an equal share.
    """
    c = config
    backpropagates = mode_of(c).always_backpropagates
    batch = c.bp.batch_size if backpropagates else c.zo.batch_size
    batches = 1 if backpropagates or c.zo.query_data == "same" else c.zo.queries
    sites = c.federation.clients_per_round or c.federation.num_clients
    each = batch or examples / c.federation.num_clients
    return sites * c.training.local_steps * each * batches
