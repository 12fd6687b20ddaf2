"""Private runs of a whole federation: what is sent, what repeats, what is paid, what is refused."""

import dataclasses
from contextlib import closing

import numpy as np
import pytest
import torch
from federation import Network, federate, resumed
from hazards import Cut, cut_at
from small_config import small_config
from tiny_reviews import CLASSES, folders, reviews  # noqa: F401  (fixtures)

from client.privacy.account import Account
from client.privacy.budget import BudgetLedger, DataSet
from client.privacy.example_differences import example_differences
from client.privacy.node_policy import NodePolicy
from client.privacy.noisy_numbers import NoisyNumbers, units_of
from client.privacy.site_secret import SECRET_FILE
from client.site.replica_host import forget_hosts
from shared.base.errors import ConfigError, PolicyError, StalledError
from shared.privacy.grid import CLIP_STEPS
from shared.protocol.flower_records import unpack
from shared.protocol.messages import Request, decode_reply
from shared.randomness.streams import direction_keys
from shared.training.corpus import Corpus
from shared.training.oracle import Oracle
from shared.training.server_choices import resolve_choices
from shared.training.site_data import SiteData

PRIVATE = {"privacy": "local", "privacy_noise": 1.0, "privacy_clip": 40.0}
SECRET = bytes(range(32))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The state folder of a test's own sites."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    forget_hosts()
    yield tmp_path / "state" / "dandelion" / "privacy"
    forget_hosts()


def site_of(config, folder, **policy):
    """An oracle, and what measures privately on all training data."""
    oracle = Oracle.of(config)
    examples = SiteData.of(config, oracle.language_model).queries.training
    units = int(units_of(examples, config.privacy.unit).max()) + 1
    data = DataSet(0, "f" * 64, "", config.privacy.unit, units)
    account = Account.open("site", folder, data, NodePolicy(**policy), config)
    return oracle, NoisyNumbers(examples, config, account, SECRET)


def request(round_=1, run=b"r" * 16):
    return Request(round_, 0.1, bytes(16), run, bytes(16))


def keys_of(config, round_=1):
    return direction_keys(config.training.seed, round_, 0, 0, config.zo.queries)


def ask(config, noisy, oracle, round_=1, **more):
    return noisy.measure(oracle, request(round_, **more), keys_of(config, round_))


def test_a_private_run_learns_a_ledger_that_says_no_more_than_its_numbers(tmp_path, home):
    network = None
    config = small_config(tmp_path, **PRIVATE)
    network = Network(config)
    result = federate(config, network)
    replies = [decode_reply(unpack(m.content)[0]) for m in network.received if m.has_content()
               and m.metadata.message_type == "train"]  # fmt: skip
    assert len(result.entries) == 3
    assert len(replies) == 9
    for reply in replies:
        assert (reply.loss, reply.seconds, reply.outcome, reply.gradient) == (None, 0, None, b"")
        assert reply.examples == config.zo.batch_size
    assert {row[4] for row in result.rows["contributions"]} == {None}
    folder = tmp_path / "run"
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / "ledger.sqlite").stat().st_mode & 0o077 == 0
    assert (home / SECRET_FILE).stat().st_mode & 0o077 == 0


def test_a_repeated_request_gets_the_same_bits_and_is_paid_for_once(tmp_path):
    config = small_config(tmp_path, **PRIVATE)
    oracle, noisy = site_of(config, tmp_path / "p")
    first, again = ask(config, noisy, oracle), ask(config, noisy, oracle)
    assert first.tobytes() == again.tobytes()
    assert [r.times for r in noisy.account.budget.spent(1)] == [1]
    noisy.account.budget.close()
    _, restarted = site_of(config, tmp_path / "p")
    assert ask(config, restarted, oracle).tobytes() == first.tobytes()
    assert [r.times for r in restarted.account.budget.spent(1)] == [1]


def test_any_other_request_gets_fresh_noise_and_is_paid_for(tmp_path):
    """Were the noise the same, a server would subtract it: other θ, eps, run, settings."""
    config = small_config(tmp_path, **PRIVATE)
    oracle, noisy = site_of(config, tmp_path / "p")
    names = {noisy.name(oracle, request())}
    ask(config, noisy, oracle)
    oracle.replica.model.flat[0] += 1e-6
    names.add(noisy.name(oracle, request()))
    ask(config, noisy, oracle)
    names.add(noisy.name(oracle, request(2)))
    names.add(noisy.name(oracle, request(run=b"s" * 16)))
    for change in ({"eps": 2e-3}, {"queries": 3}, {"privacy_clip": 41.0}):
        other = dataclasses.replace(noisy, config=config.replace(**change))
        names.add(other.name(oracle, request()))
    assert len(names) == 7
    assert [r.times for r in noisy.account.budget.spent(1)] == [2]


def test_a_run_that_was_cut_off_and_resumed_has_paid_for_each_answer_that_left(tmp_path, home):
    """The round that was cut off is asked for again: the same bits, and no other payment."""
    config, answers = small_config(tmp_path, **PRIVATE), set()

    def note(reply):
        if reply.has_content() and reply.metadata.message_type == "train":
            answers.add((reply.metadata.src_node_id, unpack(reply.content)[0]))
        return [reply]

    with pytest.raises(Cut):
        federate(config, Network(config, change=note), cut_at(1))
    forget_hosts()
    again = resumed(config)
    federate(again, Network(again, change=note))
    with closing(BudgetLedger(home)) as budget:
        spent = [sum(each.times for each in budget.spent(data.id)) for data in budget.sets()]
    assert spent == [3, 3, 3]
    assert len(answers) == 9


def test_noise_is_what_is_paid_for(tmp_path):
    """Over many requests, the numbers of one batch's sum have the deviation that was promised."""
    config = small_config(tmp_path, **PRIVATE, queries=16, zo_batch_size=1)
    oracle, noisy = site_of(config, tmp_path / "p")
    drawn = np.concatenate([ask(config, noisy, oracle, run=bytes([k] * 16)) for k in range(40)])
    clip = config.privacy.clip_of_differences(config.zo.eps, 16)
    assert drawn.std() == pytest.approx(clip, rel=0.15)


@pytest.mark.parametrize("estimator", ["two-point", "forward"])
def test_without_noise_the_numbers_are_those_of_the_secret_batch(tmp_path, estimator, monkeypatch):
    config = small_config(tmp_path, **PRIVATE, estimator=estimator, queries=4)
    oracle, noisy = site_of(config, tmp_path / "p")
    monkeypatch.setattr("client.privacy.noisy_numbers.discrete_gaussians", lambda *_: 0)
    monkeypatch.setattr("client.privacy.noisy_numbers.sample_units", lambda s, n, b: [1, 3, 4])
    numbers = ask(config, noisy, oracle)
    batch = torch.from_numpy(noisy.examples.batch(np.array([1, 3, 4])))
    each = example_differences(oracle, config, batch, keys_of(config))
    step = config.privacy.clip_of_differences(config.zo.eps, 4) / CLIP_STEPS
    assert np.allclose(numbers, each.sum(1) / 2, atol=3 * step)
    means = [oracle.loss(batch)]
    for key in keys_of(config):
        with oracle.perturber.at(key, config.zo.eps):
            means.append(oracle.loss(batch))
    if estimator == "forward":
        assert np.allclose(each.mean(1), 2 * (np.array(means[1:]) - means[0]), atol=1e-5)


def test_exact_slopes_of_examples_average_to_the_batchs(tmp_path, folders):
    config = small_config(
        tmp_path, **{**CLASSES, **PRIVATE}, model=str(folders["words"]), scope="words"
    )
    config = resolve_choices(config)
    oracle = Oracle.of(config)
    rows = torch.from_numpy(Corpus.of(config, oracle.language_model).training.batch(np.arange(6)))
    from shared.estimation.exact import exact_differences

    keys = keys_of(config)
    each = example_differences(oracle, config, rows, keys)
    _, gradient = oracle.linear_gradient(rows)
    whole = exact_differences(oracle.replica.directions, keys, gradient, config.zo.eps)
    assert each.shape == (2, 6)
    assert np.allclose(each.mean(1), whole, rtol=1e-4, atol=1e-8)
    assert len(federate(config).entries) == 3


def test_a_group_is_clipped_as_one(tmp_path, monkeypatch):
    changes = {**PRIVATE, "privacy_unit": "group", "privacy_clip": 1.0, "zo_batch_size": 1}
    config = small_config(tmp_path, **changes, max_samples=0)
    oracle, noisy = site_of(config, tmp_path / "p")
    monkeypatch.setattr("client.privacy.noisy_numbers.discrete_gaussians", lambda *_: 0)
    monkeypatch.setattr("client.privacy.noisy_numbers.sample_units", lambda s, n, b: [0])
    assert (noisy.units == 0).sum() > 1
    numbers = ask(config, noisy, oracle)
    clip = config.privacy.clip_of_differences(config.zo.eps, config.zo.queries)
    assert np.linalg.norm(numbers) <= clip * (1 + 1e-6)


def test_an_empty_batch_is_answered_like_others(tmp_path, monkeypatch):
    config = small_config(tmp_path, **PRIVATE)
    oracle, noisy = site_of(config, tmp_path / "p")
    monkeypatch.setattr("client.privacy.noisy_numbers.sample_units", lambda s, n, b: [])
    assert np.abs(ask(config, noisy, oracle)).min() > 0


def ask_until_refused(config, noisy, oracle):
    """How many requests of run after run are answered until one is not, and why it is not."""
    for number in range(90):
        try:
            ask(config, noisy, oracle, 1 + number % 3, run=bytes([number // 3] * 16))
        except PolicyError as error:
            return number, str(error)
    raise AssertionError("never refused")


def test_a_budget_over_two_runs_refuses_what_exceeds_it(tmp_path):
    pytest.importorskip("dp_accounting")
    config = small_config(tmp_path, **{**PRIVATE, "privacy_noise": 0.5})
    limit = {"max_epsilon": 1.6, "delta": 1e-5}
    oracle, noisy = site_of(config, tmp_path / "p", **limit)
    answered, reason = ask_until_refused(config, noisy, oracle)
    assert reason == "refused by policy: max-epsilon"
    spent = noisy.account.budget.spent(1)
    assert [r.times for r in spent] == [answered] != [0]
    from shared.privacy.accounting import epsilon_of

    assert epsilon_of(spent, 1e-5) <= 1.6
    assert epsilon_of([spent[0]._replace(times=answered + 1)], 1e-5) > 1.6
    ask(config, noisy, oracle, 1, run=bytes(16))  # a repeated one is free
    assert noisy.account.budget.spent(1) == spent


def test_the_server_learns_the_key_alone(tmp_path, home, caplog):
    home.mkdir(parents=True)
    (home / SECRET_FILE).write_bytes(bytes(32))
    (home / SECRET_FILE).chmod(0o644)
    config = small_config(tmp_path, **PRIVATE)
    with pytest.raises(StalledError, match="PolicyError: refused by policy: secret'"):
        federate(config)
    assert "mode 0644" in caplog.text


def test_a_damaged_budget_is_refused_by_name(tmp_path, home):
    home.mkdir(parents=True)
    (home / "budget.sqlite").write_bytes(b"x" * 4096)
    with pytest.raises(StalledError, match="refused by policy: budget'"):
        federate(small_config(tmp_path, **PRIVATE))


def test_a_noise_too_small_for_the_promise_is_refused_by_name(tmp_path):
    pytest.importorskip("dp_accounting")
    config = small_config(tmp_path, **PRIVATE, privacy_epsilon=0.01)
    oracle, noisy = site_of(config, tmp_path / "p")
    with pytest.raises(PolicyError, match=r"^refused by policy: privacy-noise$"):
        ask(config, noisy, oracle)
    assert noisy.account.budget.spent(1) == []


def test_a_promise_makes_the_noise(tmp_path):
    pytest.importorskip("dp_accounting")
    from shared.privacy.accounting import Rounds, epsilon_of

    config = small_config(tmp_path, **{**PRIVATE, "privacy_noise": 0.0}, privacy_epsilon=1.0)
    _, noisy = site_of(config, tmp_path / "p")
    assert epsilon_of([Rounds(3, noisy.noise, noisy.rate_bits)], 1e-5) <= 1.0


def test_numbers_without_noise_are_counted_where_they_are_bounded(tmp_path):
    config = small_config(tmp_path)
    network = Network(config)
    for context in network._contexts.values():
        context.node_config["max-numbers"] = 4
    with pytest.raises(StalledError):
        federate(config, network)
    with closing(BudgetLedger(tmp_path / "state" / "dandelion" / "privacy")) as budget:
        assert [budget.numbers(each.id) for each in budget.sets()] == [4, 4, 4]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy_clip": 0.0}, "privacy-clip: a number above 0"),
        ({"privacy_noise": 0.0}, "privacy-epsilon or privacy-noise"),
        ({"mode": "fo"}, "with mode"),
        ({"mode": "instruct"}, "with mode"),
        ({"local_steps": 2}, "with local-steps"),
        ({"query_data": "fresh"}, "with query-data"),
        ({"zo_batch_size": 0}, "with zo-batch-size"),
        ({"parallel_queries": 2, "directions": "lowrank"}, "with parallel-queries"),
        ({"merge_clients": True}, "with merge-clients"),
        ({"site_eval_fraction": 0.2}, "with site-eval-fraction"),
        ({"objective": "builtins:len"}, "with objective"),
        ({"privacy": "none"}, "without privacy 'local'"),
    ],
)
def test_what_would_send_more_is_refused(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        small_config(tmp_path, **{**PRIVATE, **changes})


def test_a_plain_run_may_keep_its_losses(tmp_path):
    result = federate(small_config(tmp_path, site_loss=False))
    assert {row[4] for row in result.rows["contributions"]} == {None}
    with_losses = federate(small_config(tmp_path, "other"))
    assert result.digest == with_losses.digest
