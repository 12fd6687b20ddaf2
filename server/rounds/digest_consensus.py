"""What sites say the parameters are, for a server whose own replica is behind.

With ``server-replica = lazy`` the server does not know the digest of the parameters that a round is
measured at. Where all replies carry the same one, it is noted as the round's digest before anything
rests on it; whoever brings a replica there later compares (``follow_``, ``ledger verify``). Where
replies differ, the server catches up at once and judges them as if it had never been behind.
"""

from collections.abc import Sequence

from flwr.app import Message

from server.ledger.run_folder import Run
from server.rounds.open_round import OpenRound
from shared.base.errors import WireError
from shared.modes.mode import measured_at
from shared.protocol.flower_records import unpack
from shared.protocol.messages import Measured, decode_reply


def agree_on_digest(
    run: Run, open_round: OpenRound, replies: Sequence[Message]
) -> tuple[int, bytes] | None:
    """The round that replies were measured at, and the one digest that they carry.

    None where the replica is there itself, also after it has caught up because they differ.

    Raises:
        DivergedError: earlier rounds were measured at other parameters than the ledger gives.
    """
    at = measured_at(run.config, open_round.round)
    if run.config.server_replica == "eager" or run.oracle.replica.round == at:
        return None
    asked = (message for message in replies if open_round.site_of(message) is not None)
    claims = {digest for message in asked if (digest := _claim(message)) is not None}
    if len(claims) > 1:
        run.catch_up()
        return None
    return (at, claims.pop()) if claims else None


def _claim(message: Message) -> bytes | None:
    if message.has_error():
        return None
    try:
        reply = decode_reply(unpack(message.content)[0])
    except WireError:
        return None
    return reply.digest if isinstance(reply, Measured) else None
