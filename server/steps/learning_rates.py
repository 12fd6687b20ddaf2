"""Learning rates of rounds: the schedule times a setting, or times what committed rounds say."""

from collections.abc import Sequence

from server.ledger.reader import LedgerReader
from server.ledger.records import Contribution
from server.steps.evidence import EvidenceReader, Sites, numbers_of
from server.steps.rules import RULES, StepSettings, StepState
from shared.base.errors import LedgerError
from shared.config.schema import Config
from shared.modes.mode import mode_of, parameters_round, plan_of
from shared.modes.step_rule import AUTO, PLAIN, VERSION, momentum_of, movement_of, step_rule_of
from shared.optimizers.schedules import learning_rate
from shared.protocol.entry import Entry

ROUNDING = 1e-9  # relative: hosts may differ in the last bits of a schedule's cosine


class LearningRates:
    """Rates of a run's rounds: pure functions of its settings and of the ledger's rounds before.

    Invariant: ``_states[r]`` is the state of a step rule after round r, as its lineage leads there,
    so a rewind goes on from the state of the round that it returned to.
    """

    def __init__(self, config: Config, ledger: LedgerReader, parameters: int) -> None:
        """Take the run's settings, its ledger, and the number of trained parameters."""
        self._config, self._ledger = config, ledger
        self._rule = RULES.get(step_rule_of(config))
        movement = movement_of(config, parameters)
        memory, momentum = config.optimizer.step_memory, momentum_of(config)
        self._settings = StepSettings(movement, memory, config.zo.queries, momentum)
        self._evidence = EvidenceReader(config, ledger)
        self._states = [StepState()]

    def at(self, round_: int) -> float:
        """The rate of a round by settings alone: ``bp-learning-rate`` if it backpropagates."""
        backpropagates = plan_of(self._config, round_).backpropagate
        of_bp = self._config.bp.learning_rate if backpropagates else 0.0
        return self._scale(round_) * self._height(round_, of_bp or self._config.optimizer.rate)

    def of_entry(self, entry: Entry, contributions: Sequence[Contribution]) -> float:
        """The rate that a round's entry carries; 1 if the sites' own steps had the rate."""
        if mode_of(self._config).averages_parameters:
            return 1.0
        if self._rule is None:
            return self.at(entry.round)
        return self._by_rule(entry, numbers_of(contributions))

    def of_request(self, round_: int) -> float:
        """The rate that a round's request carries, of the sites' own local steps.

        By a rule it is that of the newest round that the sites know, which the round's entry will
        have too. In the first round it is 0: no slope has been measured yet.
        """
        if local := self._config.training.local_learning_rate:
            return self._scale(round_) * local
        if self._rule is None:
            return self.at(round_)
        if self._config.training.local_steps == 1:
            return 0.0
        known = self._state(parameters_round(self._config, round_)).taken
        return self._scale(round_) * self._height(round_, known)

    def verify(self) -> int:
        """Compute each committed rate anew, as the rule makes it; return how many.

        With a schedule that depends on ``num-rounds``, which may have changed since, none is; nor
        are those of a former version of ``step = auto``, whose runs go on by the one of now.

        Raises:
            LedgerError: an entry has another rate; names its round.
        """
        settings = self._config.optimizer
        is_former = step_rule_of(self._config) == AUTO and settings.step_version < VERSION
        if self._rule is None or is_former or settings.schedule != "constant":
            return 0
        count = 0
        for round_ in range(1, self._ledger.last_round + 1):
            entry = self._ledger.entry(round_)
            if entry.back_to is not None:
                continue
            rate = self._by_rule(entry, self._ledger.site_numbers(round_))
            if abs(rate - entry.learning_rate) > ROUNDING * abs(rate):
                raise LedgerError(
                    f"{self._ledger.path}: table entries, row {round_}: a learning rate of "
                    f"{rate!r} follows from the rounds before, got {entry.learning_rate!r}"
                )
            count += 1
        return count

    def _by_rule(self, entry: Entry, sites: Sites) -> float:
        rate = self._after(self._state(entry.follows), entry, sites).taken
        if self._config.training.local_steps > 1:  # as the sites were told, if they were
            known = self._state(parameters_round(self._config, entry.round)).taken
            rate = known or rate
        return self._scale(entry.round) * self._height(entry.round, rate)

    def _state(self, round_: int) -> StepState:
        """The state after a committed round."""
        for each in range(len(self._states), round_ + 1):
            entry = self._ledger.entry(each)
            state = self._states[entry.follows]
            if entry.back_to is None:
                state = self._after(state, entry, self._ledger.site_numbers(each))
            self._states.append(state)
        return self._states[round_]

    def _after(self, state: StepState, entry: Entry, sites: Sites) -> StepState:
        if self._rule is None:
            return state
        return self._rule(state, self._evidence.of(entry, sites), self._settings)

    def _height(self, round_: int, rate: float) -> float:
        """A rate as the schedule changes it."""
        c = self._config
        return learning_rate(
            round_,
            rate=rate,
            schedule=c.optimizer.schedule,
            warmup_rounds=c.optimizer.warmup_rounds,
            rounds=c.training.rounds,
        )

    def _scale(self, round_: int) -> float:
        """What the rewinds before a round have lowered rates by."""
        scales = [rewind.scale for rewind in self._ledger.rewinds() if rewind.round < round_]
        return scales[-1] if scales else 1.0


def is_by_rule(config: Config) -> bool:
    """Whether rates follow from measurements, and not from ``learning-rate``."""
    return step_rule_of(config) != PLAIN
