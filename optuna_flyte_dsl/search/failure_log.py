"""`FailureLog`: logs the failed trials of a search: the first of each kind in full, and how many others are like it."""

import re
from dataclasses import dataclass, field

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl.errors import RefusedPointError
from optuna_flyte_dsl.search.error_origin import place_of
from optuna_flyte_dsl.search.outcome import Outcome, one_line

_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[-+]?\d+)?|\bnan\b|-?\binf\b")


@dataclass
class _Kind:
    """Failures that were raised at the same place; if no place is known, those with the same reason but for numbers.

    All points that are refused are of one kind.
    """

    first: int  # the number of the first such trial
    reason: str
    failures: int = 0
    told: int = 1  # how many of the failures the log has told of


@dataclass
class FailureLog:
    """Logs the failed trials of one search."""

    name: str
    _kinds: dict[tuple[str, str], _Kind] = field(default_factory=dict)

    def add(self, number: int, outcome: Outcome) -> None:
        """Log a failed trial, or count it if an earlier one has failed in the same way."""
        reason, place = one_line(outcome.reason), place_of(outcome.error)
        kind_of_reason = "" if isinstance(outcome.error, RefusedPointError) else _NUMBER.sub("#", reason)
        key = (type(outcome.error).__name__, place or kind_of_reason)
        kind = self._kinds.setdefault(key, _Kind(number, reason))
        kind.failures += 1
        if kind.failures == 1:
            where = f" ({place})" if place else ""
            logger.warning("Trial %d of `%s` failed: %s%s", number, self.name, reason, where)
        elif kind.failures == 10 * kind.told:
            self._tell(kind)

    def close(self) -> None:
        """Log, at the end of a search, how many trials have failed like an earlier one."""
        for kind in self._kinds.values():
            if kind.failures > kind.told:
                self._tell(kind)

    def _tell(self, kind: _Kind) -> None:
        kind.told = kind.failures
        logger.warning(
            "%d trials of `%s` have failed in the same way, trial %d first: %s",
            kind.failures,
            self.name,
            kind.first,
            kind.reason,
        )
