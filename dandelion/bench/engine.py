"""Message handling alone: rounds of many virtual clients whose measurement does nothing."""

import tempfile
import time

import numpy as np
from flwr.app import Context, Message, MessageType

from dandelion.bench.rows import BenchRow
from dandelion.engines.local import LocalGrid, contexts_of
from server.ledger.run_folder import open_run
from server.rounds.cohort import Cohort
from server.rounds.round_log import RoundLog
from server.rounds.strategy import ScalarStrategy
from shared.config.schema import Config
from shared.protocol.flower_records import pack, unpack
from shared.protocol.messages import Hello, Measured, decode_request, encode_hello, encode_reply
from shared.protocol.site_id import site_of


class IdleClient:
    """A site's side of the protocol without a model: it answers every request with zeros."""

    def __init__(self, config: Config) -> None:
        self._numbers = np.zeros(config.zo.queries * config.training.local_steps, np.float32)

    def __call__(self, message: Message, context: Context) -> Message:
        """Introduce itself, or answer zeros with the digest that the server expects."""
        if message.metadata.message_type == MessageType.QUERY:
            return Message(content=pack(encode_hello(_hello(context))), reply_to=message)
        request = decode_request(unpack(message.content)[0])
        reply = Measured(request.round, self._numbers, 1, 0.0, 0.0, request.digest)
        return Message(content=pack(encode_reply(reply)), reply_to=message)


def engine(clients: int = 1000, rounds: int = 7) -> list[BenchRow]:
    """Seconds of a round of ``clients`` no-op measurements; the note has clients per second."""
    with tempfile.TemporaryDirectory(prefix="dandelion-") as folder:
        config = Config(
            {
                "num-clients": clients,
                "num-rounds": rounds + 1,
                "queries": 1,
                "step": "plain",
                "output-dir": folder,
            }
        )
        times: list[float] = []
        with open_run(config) as run:
            log = RoundLog(run.ledger)
            cohort = Cohort(config, lambda hello: "", run.name, log)
            strategy = ScalarStrategy(
                run, cohort, log, lambda round_: times.append(time.perf_counter())
            )
            strategy.start(LocalGrid(IdleClient(config), contexts_of(config)))
    seconds = float(np.median(np.diff(times)[1:]))  # the first round meets the clients
    note = f"{clients / seconds:,.0f} clients/s, {clients} clients, q = 1"
    return [BenchRow("round without measurement", seconds, seconds, note)]


def _hello(context: Context) -> Hello:
    name = site_of(context.node_config)
    return Hello(
        site=name.name,
        slot=name.slot,
        round=0,
        base="00" * 16,
        code="00" * 16,
        run="",
        examples=1,
        device="cpu",
        dtype="float32",
        threads=1,
        can_backpropagate=True,
    )
