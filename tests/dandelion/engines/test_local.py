"""The local engine ends when it is told to, whatever fails on the way out."""

import json

import pytest
from federation import ledger_of, resumed
from small_config import small_config

from client.app import app
from dandelion.engines.local import LocalGrid, contexts_of, run_local
from server.run import serve
from shared.base.errors import StalledError, interruption_of


class Interrupted:
    """Sites of which one is interrupted in a round, and fails while it lets go."""

    def __init__(self, error, at_message):
        self.error, self.left = error, at_message

    def __call__(self, message, context):
        self.left -= 1
        if not self.left:
            try:
                raise self.error
            finally:  # as torch does whose modes are not where they were
                raise RuntimeError("trying to pop from empty mode stack")
        return app(message, context)


def digest(run):
    return json.loads((run / "summary.json").read_text())["digest"]


def train(config, client):
    return serve(LocalGrid(client, contexts_of(config)), config, lambda *_: None, all_dealt=True)


@pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt()], ids=repr)
def test_an_interrupted_run_ends_and_is_resumed_to_the_same_bits(error, tmp_path):
    config = small_config(tmp_path)
    whole = train(config.replace(run_name="whole"), app)
    with pytest.raises(type(error)):
        train(config, Interrupted(error, at_message=8))  # three introductions, a round, another
    with ledger_of(config) as ledger:
        assert ledger.last_round == 1
        assert not list(ledger.refusals())
    assert digest(run_local(resumed(config))) == digest(whole)


def test_what_a_site_raised_is_the_cause_if_too_few_answer(tmp_path, monkeypatch, caplog):
    mistake, left = ValueError("a mistake in somebody's loss"), iter(range(3))  # introductions

    def fail(message, context):
        if next(left, None) is None:
            raise mistake
        return app(message, context)

    monkeypatch.setattr("client.app.app", fail)
    with (
        caplog.at_level("DEBUG", "dandelion"),
        pytest.raises(StalledError, match="a mistake in somebody's loss") as stalled,
    ):
        run_local(small_config(tmp_path))
    assert stalled.value.__cause__ is mistake
    assert any(record.exc_info and record.exc_info[1] is mistake for record in caplog.records)


def test_what_an_error_came_up_in_is_known():
    assert interruption_of(RuntimeError("alone")) is None
    stop, error = KeyboardInterrupt(), RuntimeError("on the way out")
    error.__context__ = OSError("closed")
    error.__context__.__cause__ = stop
    stop.__context__ = error  # a circle, as of an error that is raised again
    assert interruption_of(error) is stop
