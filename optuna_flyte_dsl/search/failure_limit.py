"""`FailureLimit`: counts the trials that fail in a row."""

from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from optuna_flyte_dsl.errors import TooManyFailuresError
from optuna_flyte_dsl.search.error_origin import place_of
from optuna_flyte_dsl.search.outcome import Outcome, one_line


@dataclass
class FailureLimit:
    """Counts the trials that fail in a row."""

    name: str
    study: optuna.Study
    limits: tuple[int, int] | None  # the failures that end the search, before the first success and after it
    failures: int = 0
    any_success: bool = False

    def count(self, outcome: Outcome) -> TooManyFailuresError | None:
        """Count a finished trial, and return the error if the limit is reached."""
        if outcome.state is not TrialState.FAIL:
            self.failures, self.any_success = 0, True
        elif not outcome.lost:
            self.failures += 1
        if self.limits is None or self.failures < self.limits[self.any_success]:
            return None
        last, where = one_line(outcome.reason).rstrip("."), place_of(outcome.error)
        error = TooManyFailuresError(
            f"{self.failures} trials of `{self.name}` have failed in a row, the last one with "
            f"{last}{where and f' ({where})'}. Mend the objective; or raise `max_consecutive_failures`, "
            "or give None to go on whatever fails. What has finished is in the error's `study`.",
            self.study,
        )
        error.__cause__ = outcome.error
        return error
