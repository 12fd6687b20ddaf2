"""A site with operators answers only runs that one of them has signed, and says why not.

The commands are those of docs/explanation/guard.md.
"""

import time
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest
from small_config import small_config
from typer.testing import CliRunner

from client.privacy.operators import SKEW_S, check_operator
from client.site.node_config import NodeConfig
from dandelion.cli import server
from dandelion.cli.app import app
from dandelion.deployment.operator_keys import load_key, make_key, public_half, sign_run
from server.ledger.reader import LedgerReader
from server.ledger.run_folder import LEDGER, open_run
from shared.base.errors import ConfigError, PolicyError
from shared.config.schema import Config
from shared.problem.source import source_digest
from shared.protocol.run_request import Claim, RunRequest, config_digest, sign

KEY, STRANGER, RUN = bytes(range(32)), bytes(32), bytes(range(16))
CODE = source_digest("")
NODE = NodeConfig.of({"partition-id": 0, "operators": f"{'00' * 32}, {public_half(KEY)}"})


def signed(config, key=KEY, **changes):
    """The configuration with a request; ``changes`` are of the claim."""
    now = int(time.time())
    digest = config_digest(config.to_run_config())
    claim = {"run": RUN.hex(), "config": digest, "code": CODE.hex(), "signed": now,
             "expires": now + 60, **changes}  # fmt: skip
    return config.replace(run_request=sign(Claim(**claim), key))


def test_a_signed_run_is_answered():
    config = Config(queries=4)
    own = config.replace(run_request=sign_run(config, KEY, RUN, 1.0))
    check_operator(NODE, own, CODE, RUN)
    check_operator(NODE, own, CODE)  # an introduction names no run
    check_operator(NodeConfig.of({"partition-id": 0}), config, CODE, RUN)


@pytest.mark.parametrize(
    ("change", "log"),
    [
        (lambda c: c, "the run has no run-request"),
        (lambda c: c.replace(run_request="a.b"), "key.claim.signature expected"),
        (lambda c: signed(c, STRANGER), "which is not listed"),
        (lambda c: signed(c).replace(eps=0.5), "for other settings"),
        (lambda c: signed(c, code="00"), "for other source files"),
        (lambda c: signed(c, run="00"), "for other run"),
        (lambda c: signed(c, expires=int(time.time()) - SKEW_S - 90), "expired 6 min 30 s ago"),
        (lambda c: signed(c, signed=int(time.time()) + SKEW_S + 90), "set the clocks"),
    ],
)
def test_any_other_run_is_refused_by_the_key_operators(change, log, caplog):
    with pytest.raises(PolicyError, match=r"^refused by policy: operators$"):
        check_operator(NODE, change(Config(queries=4)), CODE, RUN)
    assert log in caplog.text


def test_a_claim_that_was_changed_has_no_signature(caplog):
    config = Config(queries=4)
    key, claim, signature = signed(config).run.request.split(".")
    other = signed(config, expires=1 << 40).run.request.split(".")[1]
    assert RunRequest.decode(f"{key}.{claim}.{signature}").is_signed()
    with pytest.raises(PolicyError, match="operators"):
        check_operator(NODE, config.replace(run_request=f"{key}.{other}.{signature}"), CODE, RUN)
    assert "the signature is not that of its key" in caplog.text


@pytest.mark.parametrize("claim", ['{"signed": Infinity}', "[" * 100_000, "7", ""], ids=repr)
def test_a_claim_that_is_none_is_refused_by_the_key(claim, caplog):
    claim = claim.replace("{", '{"run": "", "config": "", "code": "", "expires": 1, ')
    setting = f"{'00' * 32}.{urlsafe_b64encode(claim.encode()).decode()}.{'00' * 64}"
    with pytest.raises(PolicyError, match="operators"):
        check_operator(NODE, Config(run={"request": setting}), CODE, RUN)
    assert "key.claim.signature expected" in caplog.text


@pytest.mark.parametrize("hours", [-1.0, float("inf"), float("nan")])
def test_a_signature_that_never_ends_is_refused(hours):
    with pytest.raises(ConfigError, match=r"--valid-hours: 0 to 876,600 expected"):
        sign_run(Config(), b"k" * 32, b"r" * 16, hours)


def test_a_key_is_made_once_for_its_owner_alone(tmp_path):
    file = tmp_path / "home" / "operator.key"
    private = make_key(file)
    assert load_key(file) == private
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="a key is there already"):
        make_key(file)
    assert load_key(file) == private
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="mode 0600 expected, got 0640"):
        load_key(file)
    file.chmod(0o600)
    file.write_text("short")
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        load_key(file)
    with pytest.raises(ConfigError, match="no key here"):
        load_key(tmp_path / "none")


def test_the_commands_sign_a_run_and_sign_it_anew_when_it_is_resumed(tmp_path, monkeypatch):
    """What ``server run`` writes is what Flower sends to the sites."""
    home = tmp_path / "server"
    typed = ["server", "keys", "new", "--home", str(home)]
    made = CliRunner().invoke(app, typed).output.strip()
    assert CliRunner().invoke(app, ["server", "keys", "show", *typed[3:]]).output.strip() == made
    monkeypatch.setattr(server, "_flwr", lambda home, *words, quiet=False: {"run-id": "7"})
    monkeypatch.setattr(server, "_wait", lambda home, run_id: ("finished:completed", ""))
    monkeypatch.setattr("dandelion.monitor.progress.show_summary", lambda console, path: None)

    def run(*words):
        key = ["--operator-key", str(home / "operator.key"), "--valid-hours", "24"]
        done = CliRunner().invoke(app, ["server", "run", *typed[3:], *words, *key])
        assert done.exit_code == 0, done.exception
        return Config.from_run_config(server.tomllib.loads((home / "run.toml").read_text()))

    sent = run("--name", "a", "--set", "num-rounds=3", "--set", "model=byte-gpt")
    node = NodeConfig.of({"partition-id": 0, "operators": made})
    claim = RunRequest.decode(sent.run.request).claim
    check_operator(node, sent, CODE, bytes.fromhex(claim.run))
    assert claim.expires - claim.signed == 24 * 3600
    with open_run(sent) as opened:
        assert opened.name.hex() == claim.run
    again = run("--resume", str(home / "runs" / "a"))
    renewed = RunRequest.decode(again.run.request)
    check_operator(node, again, CODE, opened.name)
    assert renewed.claim.run == claim.run
    assert again.run.request != sent.run.request


def test_a_run_without_a_request_has_a_name_by_chance(tmp_path):
    with open_run(small_config(tmp_path)) as opened:
        path = Path(opened.folder) / LEDGER
    assert LedgerReader(path).header("run") == opened.name != RUN
