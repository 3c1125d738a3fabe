"""`OpenTrials`: the trials of a search that were asked for and not told, and how they end with the search."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_flyte_dsl._compat.optuna import stored_trial, trial_id, trials_to_read
from optuna_flyte_dsl._foreign_errors import is_storage_outage
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._retry import retry
from optuna_flyte_dsl.errors import StorageUnavailableError
from optuna_flyte_dsl.search.outcome import Outcome
from optuna_flyte_dsl.search.untold_outcomes import untold_error
from optuna_flyte_dsl.study.durable_storage import DurableStorage

T = TypeVar("T")

_NOT_CONTINUED = "The search ended before it continued this trial, which an earlier process had begun."


class OpenTrials:
    """The trials of a search that were asked for and not told. Several threads may call the methods.

    Args:
        name: The objective's name, for messages.
        storage: The durable proxy of the study's storage, if that outlives the process.
        store_details: Stores, in a trial's attributes, what its outcome has beside its state and its values.
    """

    def __init__(
        self,
        study: optuna.Study,
        name: str,
        storage: DurableStorage | None,
        store_details: Callable[[Trial | FrozenTrial, Outcome], None],
    ) -> None:
        self.study_name: str = ""
        self._study = study
        self._name = name
        self._storage = storage
        self._store_details = store_details
        self._trials: dict[int, Trial] = {}
        self._untold: dict[int, Outcome] = {}  # outcomes of open trials that the storage has not yet accepted
        self._calls: set[object] = set()  # those that other threads are to make, and have not ended
        self._call_ended = threading.Condition()
        self.is_closing: bool = False  # whether `close` has begun to tell trials

    def add(self, trial: Trial) -> None:
        """Note that a trial was asked for."""
        self._trials[trial.number] = trial

    def add_running(self, first: int) -> None:
        """Note the running trials, from a number on, that an interrupted ask has stored and not returned."""
        for trial in list(trials_to_read(self._study))[first:]:
            if trial.state is TrialState.RUNNING and trial.number not in self._trials:
                self.add(stored_trial(self._study, trial_id(trial)))

    def keep(self, number: int, outcome: Outcome) -> None:
        """Keep the outcome of a trial until the trial is removed."""
        self._untold[number] = outcome

    def remove(self, number: int) -> None:
        """Note that a trial was told, or is another search's."""
        self._trials.pop(number, None)  # the event loop's thread may have removed the trial
        self._untold.pop(number, None)

    def promise(self, run: Callable[..., T], call: Callable[[], None]) -> T:
        """Have a call that stores or tells a trial made in another thread: `close` waits for its end.

        Args:
            run: Starts a function in a thread.

        Returns:
            What `run` has returned.
        """
        made = object()

        def promised() -> None:
            try:
                call()
            finally:
                self._end_call(made)

        with self._call_ended:
            self._calls.add(made)
        try:
            return run(promised)
        except BaseException:  # the system starts no thread; or `run` has made the call, which has raised this
            self._end_call(made)
            raise

    def _end_call(self, made: object) -> None:
        with self._call_ended:
            self._calls.discard(made)
            self._call_ended.notify_all()

    def close(
        self, interrupted: Outcome, adopted: Sequence[FrozenTrial], *, waits: bool, asking: int | None = None
    ) -> None:
        """Tell the study, at the end of a search, how all trials that are still open have ended.

        An outcome that the storage has refused is told again.

        Args:
            interrupted: The outcome of the trials that have no outcome.
            adopted: Trials of an earlier process that were adopted and not asked for. They are lost.
            waits: Whether to wait for the calls of other threads that store or tell trials.
            asking: The number of a trial that an ask has stored, and has not returned.
        """
        with self._call_ended:
            self._call_ended.wait_for(lambda: not (waits and self._calls))
        self.is_closing = True
        unreturned = self._unreturned(asking) if asking is not None and asking not in self._trials else []
        if not self._trials and not adopted and not unreturned:
            return
        if self._storage is not None:
            self._storage.hurry()
        lost = Outcome(TrialState.FAIL, reason=_NOT_CONTINUED, lost=True)
        opened = self._trials.copy()
        taken_over = self._taken_over({number: opened[number] for number in opened.keys() - self._untold.keys()})
        left: dict[int, tuple[Trial | FrozenTrial, Outcome]] = {
            number: (trial, self._untold.get(number, interrupted))
            for number, trial in opened.items()
            if number not in taken_over
        }
        left |= {trial.number: (trial, lost) for trial in adopted}
        left |= {trial.number: (trial, interrupted) for trial in unreturned}

        def tell_all() -> None:
            for number in list(left):
                if self._tell_at_last(*left[number]):
                    del left[number]
            if left:
                raise TimeoutError

        with contextlib.suppress(TimeoutError):
            # A `DurableStorage` has already retried its calls, so no attempt is added.
            pauses_between = iter(pauses.at_last if self._storage is None else ())
            retry(tell_all, pauses_between, may_pass=lambda error: isinstance(error, TimeoutError))
        self._trials.clear()
        for number, (_, outcome) in left.items():
            what = f"{outcome.state.name} {outcome.values or ''}".strip()
            logger.error("Trial %d of `%s` could not be told: %s", number, self._name, what)
        finished = {
            number: (trial, outcome)
            for number, (trial, outcome) in left.items()
            if number in self._untold and isinstance(trial, Trial)
        }
        self._untold.clear()
        if finished:
            raise untold_error(self._name, self.study_name, finished)

    def _unreturned(self, asking: int) -> list[FrozenTrial]:
        """Return the trial with a number, if it is running."""
        with contextlib.suppress(Exception):  # if the storage fails, the trial is another search's to close
            running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            return [each for each in running if each.number == asking]
        return []

    def give_up(self) -> StorageUnavailableError:
        """Save the outcomes that the storage has not accepted, and return the error that names the file."""
        trials, untold = self._trials.copy(), self._untold.copy()  # copies: the storage may answer now
        left = {number: (trial, untold[number]) for number, trial in trials.items() if number in untold}
        self._trials.clear()
        if not left:
            return StorageUnavailableError(f"The storage of `{self._name}` does not answer.", (), None)
        return untold_error(self._name, self.study_name, left)

    def is_taken_over(self, trial: Trial) -> bool:
        """Return whether another search owns a trial now, because it has taken this process for dead."""
        if self._storage is None:
            return False
        with contextlib.suppress(Exception):  # if the storage fails, the trial is told when it answers
            return not self._storage.owner.owns(self._storage.read_anew(trial_id(trial)))
        return False

    def _taken_over(self, trials: dict[int, Trial]) -> set[int]:
        """Return the numbers of those trials that another search owns now."""
        if self._storage is None or not trials:
            return set()
        owner = self._storage.owner
        self._storage.share(*map(trial_id, trials.values()))
        with contextlib.suppress(Exception):  # if the storage fails, the trials are told when it answers
            stored = self._study.get_trials(deepcopy=False)
            return {trial.number for trial in stored if trial.number in trials and not owner.owns(trial)}
        return set()

    def _tell_at_last(self, trial: Trial | FrozenTrial, outcome: Outcome) -> bool:
        try:
            self._store_details(trial, outcome)
        except Exception as error:  # noqa: BLE001 - the state is worth more than the reason
            if self._storage is not None and is_storage_outage(error):
                return False
        try:
            # A `Trial` made of an adopted trial would ask the sampler for its parameters.
            told = trial if isinstance(trial, Trial) else trial.number
            self._study.tell(told, outcome.values, state=outcome.state, skip_if_finished=True)
        except Exception:  # noqa: BLE001 - tried again
            logger.debug("Telling trial %d failed.", trial.number, exc_info=True)
            return False
        return True
