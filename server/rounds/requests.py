"""The request to one site: the entries that it missed, the round to measure, its rate."""

from typing import NamedTuple

from flwr.app import Message, MessageType

from server.ledger.run_folder import OpenRun
from server.ledger.snapshots import Snapshots
from server.rounds.catch_up import CatchUp, catch_up, full_parameters
from server.rounds.cohort import SiteRecord
from server.steps.learning_rates import LearningRates
from shared.base.errors import GapError, LedgerError
from shared.modes.mode import parameters_round
from shared.modes.step_rule import compares
from shared.protocol.entry import is_dense
from shared.protocol.flower_records import pack
from shared.protocol.messages import UNKNOWN, Request, encode_request


class EncodedRequest(NamedTuple):
    """The content of a message to sites whose replicas are at one round."""

    payload: bytes
    snapshot: bytes | None
    dense: bool  # whether gradients are in the payload


class RequestBuilder:
    """Builds requests for the rounds that are open: one, or two with staleness.

    Sites whose replicas are at the same round get the same bytes, which are encoded once.
    """

    def __init__(self, run: OpenRun, rates: LearningRates) -> None:
        self._run, self._rates = run, rates
        self._snapshots = Snapshots(run.ledger)
        self._encoded: dict[
            tuple[int, int | None, bool, int], EncodedRequest
        ] = {}  # of open rounds

    def message(self, site: SiteRecord, round_: int, at: int | None, rider: bytes = b"") -> Message:
        """Build the request for a site whose replica is at round ``at``; None: it has none.

        ``rider`` is a request for a sum that goes with it.

        Raises:
            GapError: neither entries nor a snapshot can bring the replica to where it measures.
        """
        compare = self.compares(round_, site.id.slot)
        payload, snapshot, dense = self._encode(at, round_, compare)
        return Message(
            content=pack(payload, snapshot, dense, rider),
            dst_node_id=site.node_id,
            message_type=MessageType.TRAIN,
            group_id=str(round_),
            ttl=self._run.config.federation.round_timeout
            * (1 + self._run.config.federation.staleness),
        )

    def digest(self, round_: int) -> bytes | None:
        """The digest of the parameters that a round is measured at: the replica's or the ledger's.

        None if a lazy server's replica has not been there yet.

        Raises:
            LedgerError: none was recorded.
        """
        run, at = self._run, parameters_round(self._run.config, round_)
        if run.oracle.replica.round == at:
            return run.oracle.replica.digest()
        recorded = run.ledger.digest(at)
        if recorded is None and run.config.run.server_replica == "eager":
            raise LedgerError(f"{run.ledger.path}: table digests: round {at} is missing")
        return recorded

    def evaluates(self, round_: int) -> bool:
        """Whether sites evaluate the parameters that a round is measured at."""
        c = self._run.config
        at = parameters_round(c, round_)
        is_due = c.evaluation.interval > 0 and at % c.evaluation.interval == 0
        return bool(c.evaluation.site_fraction) and is_due

    def compares(self, round_: int, slot: int) -> bool:
        """Whether a site measures the batch of the last step again: it has measured it before.

        With staleness that is not known yet when the round is requested; then every site does.
        """
        config, ledger = self._run.config, self._run.ledger
        step = parameters_round(config, round_)
        if not compares(config) or step < 1 or ledger.is_rewind(step):
            return False
        return bool(config.federation.staleness) or slot in ledger.slots_before_step(step)

    def _attempt(self, round_: int) -> int:
        """How often a round was tried before, if each attempt is measured and sealed anew."""
        is_sealed = self._run.config.privacy.is_sealed
        return self._run.ledger.count_skips(round_) if is_sealed else 0

    def _encode(self, site_round: int | None, round_: int, compare: bool) -> EncodedRequest:
        attempt = self._attempt(round_)
        if (name := (round_, site_round, compare, attempt)) not in self._encoded:
            oldest = round_ - self._run.config.federation.staleness
            self._encoded = {key: each for key, each in self._encoded.items() if key[0] >= oldest}
            self._encoded[name] = self._encode_anew(site_round, round_, compare)
        return self._encoded[name]

    def _encode_anew(self, site_round: int | None, round_: int, compare: bool) -> EncodedRequest:
        run = self._run
        missing = self._catch_up(site_round, parameters_round(run.config, round_))
        request = Request(
            round=round_,
            learning_rate=self._rates.of_request(round_),
            digest=self.digest(round_) or UNKNOWN,
            run=run.name,
            code=run.code,
            entries=missing.entries,
            reset=missing.reset,
            evaluate=self.evaluates(round_),
            compare=compare,
            attempt=self._attempt(round_),
        )
        dense = any(is_dense(entry) for entry in missing.entries)
        return EncodedRequest(encode_request(request), missing.snapshot, dense)

    def _catch_up(self, site_round: int | None, to: int) -> CatchUp:
        """What brings a replica to round ``to``; the server's own state if nothing else does."""
        run = self._run
        if run.config.federation.downlink == "dense":
            return self._full_parameters()
        try:
            return catch_up(run.config, run.ledger, self._snapshots, site_round, to)
        except GapError:
            if run.ledger.last_round != to:
                raise
            return self._full_parameters()

    def _full_parameters(self) -> CatchUp:
        self._run.catch_up()
        return full_parameters(self._run.oracle.replica, self._run.name)
