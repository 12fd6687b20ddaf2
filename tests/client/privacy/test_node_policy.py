"""A site's policy and secret: every refusal names its key, and nothing else leaves."""

import os

import pytest
from small_config import small_config

from client.privacy.named_places import SERVERS, is_path, paths_of_run
from client.privacy.node_policy import NodePolicy
from client.privacy.site_secret import SECRET_FILE, load_secret, make_secret
from client.site.node_config import NodeConfig
from shared.base.errors import BudgetError, ConfigError, PolicyError
from shared.config.schema import Config, settings
from shared.protocol.entry import Entry
from shared.protocol.messages import Request


def config_of(changes):
    """A configuration that a server may send, whether or not what it names is here."""
    return Config(zo_batch_size=2, queries=2).replace(**changes)


@pytest.mark.parametrize(
    ("key", "allowed", "run"),
    [
        ("privacy", "local", {}),
        ("unit", "group", {"privacy": "local", "privacy_noise": 1.0, "privacy_clip": 40.0}),
        ("allow-modes", "zo,calibrate", {"mode": "fo"}),
        ("allow-scopes", "last:*, words", {"scope": "regex:.*"}),
        ("allow-scopes", "!regex:*", {"scope": "regex:.*"}),
        ("allow-modes", "!*", {}),
        ("allow-paths", "!*", {"dataset": "/srv/ward-3"}),
        ("allow-paths", "/srv/models/*", {"init_from": "/srv/models/../ward-3"}),
        ("allow-apps", "!*", {"app": "digits:problem"}),
        ("allow-apps", "digits:*", {"objective": "os:system"}),
        ("max-clip", 8.0, {"privacy": "local", "privacy_noise": 1.0, "privacy_clip": 40.0}),
        ("eps-range", "1e-5..1e-2", {"eps": 0.5}),
        ("min-batch", 8, {"zo_batch_size": 2}),
        ("min-batch", 2, {"zo_batch_size": 8, "batch_order": "epochs"}),
        ("max-queries", 8, {"queries": 4, "local_steps": 3}),
        ("allow-evaluation", False, {"site_eval_fraction": 0.2}),
    ],
)
def test_a_run_that_is_not_allowed_is_refused_by_its_key(tmp_path, key, allowed, run, caplog):
    node = NodeConfig.of({"partition-id": 0, key: allowed})
    with pytest.raises(PolicyError, match=f"^refused by policy: {key}$"):
        node.check_run(config_of(run))
    assert f"refused by policy: {key}: the run has" in caplog.text
    NodeConfig.of({"partition-id": 0}).check_run(config_of(run))


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


PATHS = sorted(each.key for each in settings().values() if each.path)


@pytest.mark.parametrize("key", sorted({*PATHS} - {*SERVERS}))
@pytest.mark.parametrize("name", ["/srv/ward-3", "./ward-3", "~/ward-3", "x/../../ward-3"])
def test_no_setting_names_a_folder_of_a_sites_disk(key, name):
    """Every setting that is declared as a path, and that a site would read."""
    node = NodeConfig.of({"partition-id": 0, "allow-paths": "!*"})
    with pytest.raises(PolicyError, match="allow-paths"):
        node.check_run(Config({key: name}))


def test_every_setting_that_speaks_of_folders_is_declared_as_a_path():
    """So that a new one is refused too; the names of columns in a folder's tables are none."""
    words = ("folder", "file", "checkout", "director")
    speaking = {
        each.key
        for each in settings().values()
        if each.kind is str and any(word in each.meaning for word in words)
    }
    columns = {key for key in settings() if key.endswith(("-column", "-columns"))}
    assert speaking - columns - {"partitioner"} <= {*PATHS}
    assert {"dataset", "bp-dataset", "init-from", "model", "app-dir"} <= {*PATHS}


def test_what_the_site_has_of_its_own_stands_for_what_the_run_names():
    run = Config(dataset="/a", bp_dataset="/a", init_from="/b")
    assert sorted(paths_of_run(run)) == ["/a", "/a", "/b"]
    own = NodeConfig.of({"partition-id": 0, "data": "/own", "init-from": "/start"})
    assert not list(paths_of_run(run, own.own_settings))
    other = run.replace(bp_dataset="/c")
    assert list(paths_of_run(other, own.own_settings)) == ["/c"]


def test_names_are_no_paths_unless_something_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not any(map(is_path, ("stdlib", "owner/name", "owner/name:config", "20M", "")))
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert is_path("owner/name")


def test_a_link_into_an_allowed_folder_is_what_it_leads_to(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "models" / "link").symlink_to(tmp_path / "secret")
    node = NodeConfig.of({"partition-id": 0, "allow-paths": f"{tmp_path}/models*"})
    node.check_run(Config(init_from=str(tmp_path / "models")))
    with pytest.raises(PolicyError, match="allow-paths"):
        node.check_run(Config(init_from=str(tmp_path / "models" / "link")))


@pytest.mark.parametrize(
    ("policy", "noise", "bits", "key"),
    [
        ({"min-noise": 1.0}, 0.9, 4, "min-noise"),
        ({"max-rate": 0.05}, 2.0, 4, "max-rate"),
        ({"min-noise": 1.0, "max-rate": 0.0625}, 1.0, 4, ""),
    ],
)
def test_a_private_run_with_little_noise_or_large_batches_is_refused(policy, noise, bits, key):
    node = NodeConfig.of({"partition-id": 0, **policy})
    if not key:
        return node.check_noise(noise, bits)
    with pytest.raises(PolicyError, match=key):
        node.check_noise(noise, bits)
    return None


def test_only_listed_base_models_are_measured():
    node = NodeConfig.of({"partition-id": 0, "allow-models": f"{bytes(16).hex()}, aa"})
    node.check_base(bytes(16))
    with pytest.raises(PolicyError, match="allow-models"):
        node.check_base(bytes([1] * 16))


def test_a_gradient_of_the_servers_making_counts_as_whole_parameters():
    """It moves the parameters anywhere, as a snapshot does."""
    forged = Entry(1, 1.0, (), guide=1.0, payload=b"anything").encode()
    request = Request(2, 0.1, bytes(16), bytes(16), bytes(16), (forged,))
    with pytest.raises(PolicyError, match="allow-snapshots"):
        NodePolicy(allow_snapshots=False).check_parameters(request, False)
