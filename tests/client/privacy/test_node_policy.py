"""A site's policy and secret: every refusal names its key, and nothing else leaves."""

import os

import pytest
from small_config import small_config

from client.privacy.node_policy import NodePolicy
from client.privacy.site_secret import SECRET_FILE, load_secret, make_secret
from client.site.node_config import NodeConfig
from shared.base.errors import BudgetError, ConfigError, PolicyError
from shared.protocol.messages import Request


@pytest.mark.parametrize(
    ("key", "allowed", "run"),
    [
        ("privacy", "local", {}),
        ("unit", "group", {"privacy": "local", "privacy_noise": 1.0, "privacy_clip": 40.0}),
        ("allow-modes", "zo,calibrate", {"mode": "fo"}),
        ("allow-scopes", "last:*, words", {"scope": "regex:.*"}),
        ("eps-range", "1e-5..1e-2", {"eps": 0.5}),
        ("min-batch", 8, {"zo_batch_size": 2}),
        ("max-queries", 8, {"queries": 4, "local_steps": 3}),
        ("allow-evaluation", False, {"site_eval_fraction": 0.2}),
    ],
)
def test_a_run_that_is_not_allowed_is_refused_by_its_key(tmp_path, key, allowed, run, caplog):
    node = NodeConfig.of({"partition-id": 0, key: allowed})
    with pytest.raises(PolicyError, match=f"^refused by policy: {key}$"):
        node.check_run(small_config(tmp_path, **run))
    assert f"refused by policy: {key}: the run has" in caplog.text
    NodeConfig.of({"partition-id": 0}).check_run(small_config(tmp_path, **run))


def test_what_is_within_the_policy_is_allowed(tmp_path):
    policy = NodePolicy(
        allow_modes="zo", allow_scopes="full", eps_range="1e-4..1e-2", min_batch=2, max_queries=2
    )
    policy.check_run(small_config(tmp_path))


def test_whole_parameters_are_refused_where_entries_must_give_them():
    request = Request(1, 0.1, bytes(16), bytes(16), bytes(16))
    NodePolicy().check_parameters(request, True)
    NodePolicy(allow_snapshots=False).check_parameters(request, False)
    with pytest.raises(PolicyError, match="allow-snapshots"):
        NodePolicy(allow_snapshots=False).check_parameters(request, True)


@pytest.mark.parametrize("text", ["1e-3", "b..c", "2..1", "-1..2"])
def test_a_wrong_range_is_refused_at_the_start(text):
    with pytest.raises(ConfigError, match=r"node config: eps-range: low\.\.high expected"):
        NodeConfig.of({"partition-id": 0, "eps-range": text})


def test_a_relative_home_is_refused():
    with pytest.raises(ConfigError, match="privacy-home: an absolute path"):
        NodeConfig.of({"partition-id": 0, "privacy-home": "here"})


def test_a_secret_is_made_once_and_is_its_owners_alone(tmp_path):
    secret = load_secret(tmp_path / "p")
    assert len(secret) == 32
    assert load_secret(tmp_path / "p") == make_secret(tmp_path / "p") == secret
    assert (tmp_path / "p" / SECRET_FILE).stat().st_mode & 0o777 == 0o600
    assert make_secret(tmp_path / "p", replace=True) != secret


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_secret_that_others_can_read_is_refused(tmp_path, mode):
    load_secret(tmp_path)
    (tmp_path / SECRET_FILE).chmod(mode)
    with pytest.raises(BudgetError, match=r"mode 0600\) expected"):
        load_secret(tmp_path)


def test_a_secret_of_another_length_is_refused(tmp_path):
    make_secret(tmp_path)
    (tmp_path / SECRET_FILE).write_bytes(b"short")
    with pytest.raises(BudgetError, match="32 bytes expected, got 5"):
        load_secret(tmp_path)


def test_a_link_is_no_secret(tmp_path):
    (tmp_path / "elsewhere").write_bytes(bytes(32))
    os.symlink(tmp_path / "elsewhere", tmp_path / SECRET_FILE)
    with pytest.raises(BudgetError, match="a readable file expected"):
        load_secret(tmp_path)


def test_a_secret_that_is_missing_beside_a_budget_is_not_made_anew(tmp_path):
    (tmp_path / "budget.counter").write_text("1 00\n")
    with pytest.raises(BudgetError, match="missing beside a budget"):
        load_secret(tmp_path)
