"""Only runs that an operator has signed are answered, if the node's config lists operators."""

import time
from collections.abc import Callable

from client.privacy.node_policy import NodePolicy, refuse, split_list
from shared.base.errors import WireError
from shared.config.schema import Config
from shared.protocol.run_request import RunRequest, config_digest

KEY = "operators"
SKEW_S = 300  # how far the clocks of operator and site may differ


def check_operator(
    policy: NodePolicy,
    config: Config,
    code: bytes,
    run: bytes = b"",
    clock: Callable[[], float] = time.time,
) -> None:
    """Refuse a run without a valid request of a listed operator; nothing if none is listed.

    Args:
        policy: of the node.
        config: of the run, as it came.
        code: digest of this site's own source files.
        run: 16 bytes, that a request names; empty while the site only introduces itself.
        clock: Unix seconds.

    Raises:
        PolicyError: names the key ``operators``; the log of this process says what is wrong.
    """
    if not (operators := split_list(policy.operators.lower())):
        return
    if not config.run.request:
        refuse(KEY, "the run has no run-request: 'dandelion server run --operator-key' signs one")
    try:
        request = RunRequest.decode(config.run.request)
    except WireError as error:
        refuse(KEY, str(error))
    if request.key.hex() not in operators:
        refuse(KEY, f"the request is of key {request.key.hex()}, which is not listed")
    if not request.is_signed():
        refuse(KEY, "the signature is not that of its key over its claim")
    _check_claim(request, config, code, run)
    _check_time(request, int(clock()))


def _check_claim(request: RunRequest, config: Config, code: bytes, run: bytes) -> None:
    claim = request.claim
    for what, signed, got in (
        ("settings", claim.config, config_digest(config.to_run_config())),
        ("source files", claim.code, code.hex()),
        ("run", claim.run, run.hex() or claim.run),
    ):
        if signed != got:
            refuse(KEY, f"the request is for other {what}: {signed} signed, got {got}")


def _check_time(request: RunRequest, now: int) -> None:
    """Refuse what has expired, and what is signed later than now: one of two clocks is wrong."""
    claim = request.claim
    if now > claim.expires + SKEW_S:
        refuse(KEY, f"the request expired {_ago(now - claim.expires)} ago by this site's clock")
    if claim.signed > now + SKEW_S:
        refuse(
            KEY,
            f"the request was signed {_ago(claim.signed - now)} ahead of this site's clock: "
            "set the clocks of operator and site",
        )


def _ago(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
