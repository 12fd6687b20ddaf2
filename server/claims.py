"""What sites say the parameters are, for a server whose own replica is behind.

With ``server-replica = lazy`` the server does not know the digest of the parameters that a round is
measured at. Where all replies carry the same one, it is noted as the round's digest before anything
rests on it; whoever brings a replica there later compares (``follow_``, ``ledger verify``). Where
replies differ, the server catches up at once and judges them as if it had never been behind.
"""

from collections.abc import Iterable

from flwr.app import Message

from server.folder import Run
from shared.errors import WireError
from shared.wire import Measured, decode_reply, unpack


def known_digest(run: Run, round_: int, replies: Iterable[Message]) -> bytes | None:
    """The digest of the parameters after a round: the replica's, or what its readers agree on.

    None where there is nothing to read.

    Raises:
        DivergedError: the replica caught up, and earlier rounds were measured at other parameters.
    """
    replica = run.learner.replica
    if replica.round == round_:
        return replica.digest()
    claims = {digest for message in replies if (digest := _claim(message)) is not None}
    if len(claims) > 1:
        run.catch_up()
        return replica.digest()
    return claims.pop() if claims else None


def _claim(message: Message) -> bytes | None:
    if message.has_error():
        return None
    try:
        reply = decode_reply(unpack(message.content)[0])
    except WireError:
        return None
    return reply.digest if isinstance(reply, Measured) else None
