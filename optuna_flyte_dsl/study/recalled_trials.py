"""`RecalledTrials`: what a thread has read of a study's trials, so that it reads them once at each ask."""

import contextlib
import threading
from collections.abc import Callable, Container, Iterator

from optuna.trial import FrozenTrial, TrialState

from optuna_flyte_dsl._compat.optuna import trial_id
from optuna_flyte_dsl.study.trial_history import TrialHistory

_ENDED = tuple(state for state in TrialState if state.is_finished())


class RecalledTrials(threading.local):
    """The trials of a study as this thread has read them, during an ask.

    At an ask, Optuna looks for waiting trials, the sampler for the history, and the search for its total and for the
    points that are taken. A journal makes a list of all trials for each of them.
    """

    def __init__(self) -> None:
        self._is_kept = False
        self._study_id = -1
        self._trials: list[FrozenTrial] | None = None
        self._histories: dict[int, TrialHistory] = {}  # by the id of the study

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """In the body, keep what is read of all trials, until `forget`."""
        self._is_kept, self._trials = True, None
        try:
            yield
        finally:
            self._is_kept, self._trials = False, None

    def forget(self) -> None:
        """Read the trials anew when they are wanted next."""
        self._trials = None

    def find(
        self, study_id: int, states: Container[TrialState] | None, read: Callable[[], list[FrozenTrial]]
    ) -> list[FrozenTrial] | None:
        """Return the trials of some states, or all for `None`; `None` outside of a body of `kept`.

        Args:
            read: Reads all trials of the study. It is called if they are not kept yet.
        """
        if not self._is_kept:
            return None
        if self._trials is None or study_id != self._study_id:
            self._study_id, self._trials = study_id, read()
        if states is None:
            return self._trials
        trials = self._trials
        if not any(state in states for state in _ENDED):
            _, trials = self._histories.setdefault(study_id, TrialHistory()).look(trials)
        return [trial for trial in trials if trial.state in states]

    def note(self, trial: FrozenTrial) -> None:
        """Note a trial of the study that was just read by itself, such as the trial that an ask has made."""
        trials = self._trials
        if trials is None:
            return
        # A new list, because the sampler may hold the old one.
        has_all = not trials or trials[-1].number == len(trials) - 1  # else a trial is not visible yet
        if has_all and trial.number == len(trials):
            self._trials = [*trials, trial]
        elif has_all and trial.number < len(trials) and trial_id(trials[trial.number]) == trial_id(trial):
            self._trials = [*trials[: trial.number], trial, *trials[trial.number + 1 :]]
        else:  # another search has made trials meanwhile
            self.forget()
