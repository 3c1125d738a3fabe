"""`DurableStorage`: a proxy of a storage that waits out outages, and names the owner of each trial."""

import contextlib
import copy
import functools
import threading
import time
import uuid
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_flyte_dsl._compat.optuna import trial_id
from optuna_flyte_dsl._compat.optuna_journal import GatheringJournalStorage
from optuna_flyte_dsl._foreign_errors import is_storage_outage
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._offload import offload
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._proxy import Proxy
from optuna_flyte_dsl._retry import backoff, retry
from optuna_flyte_dsl._threads import in_event_loop, in_own_thread
from optuna_flyte_dsl.study.attributes import ERROR, LOST, PREFIX, REQUEST
from optuna_flyte_dsl.study.liveness import Life, Owner, owner_keys
from optuna_flyte_dsl.study.recalled_trials import RecalledTrials
from optuna_flyte_dsl.study.remembering_storage import RememberingStorage, remembering

T = TypeVar("T")


class DurableStorage(Proxy):
    """A proxy of a storage whose data is kept after this process ends.

    A call that fails because of a temporary error is retried. Before the creation of a trial is retried, the proxy
    looks for a trial that the failed attempt has stored. If the retry of a state change is refused, the proxy reads the
    stored state.
    """

    def __init__(self, storage: BaseStorage, owner: Owner, what: str) -> None:
        super().__init__(remembering(storage))
        self._self_owner = owner
        self._self_what = what
        self._self_mine: set[int] = set()  # ids of trials that this search has asked for
        self._self_next_number = -1  # the number of the next trial, if no other search makes one
        self._self_unchecked = (-1, -1)  # the study and the trial that was created last, until its number is known
        self._self_spares: list[int] = []
        self._self_recalled = RecalledTrials()
        self._self_ending = threading.Event()
        self._self_warned = False
        self._self_calls: dict[object, float] = {}  # call under way -> time at which it began

    @property
    def owner(self) -> Owner:
        """The owner of the trials that are asked for."""
        return self._self_owner

    @property
    def spares(self) -> list[int]:
        """The ids of running trials of this search that no ask has taken yet."""
        return self._self_spares

    @property
    def silence(self) -> float:
        """The seconds for which the oldest call under way has had neither an answer nor an error."""
        return max((time.monotonic() - since for since in list(self._self_calls.values())), default=0.0)

    def hurry(self) -> None:
        """Wait out outages only for a moment from now on, because the search is ending."""
        self._self_ending.set()

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Hold a lock that excludes other searches on a study; see `Owner.exclusive`."""
        with contextlib.ExitStack() as stack:
            self._self_durably(lambda: stack.enter_context(self._self_owner.exclusive(f"{PREFIX}{name}")))
            yield

    def life(self, trial: FrozenTrial) -> Life:
        """Return whether the process that runs a trial is alive, dead or unknown."""
        return self._self_durably(lambda: self._self_owner.life(trial))

    def reads_once(self) -> contextlib.AbstractContextManager[None]:
        """In the body, let this thread read the trials of the study once, and again after `forget_trials`."""
        return self._self_recalled.kept()

    def forget_trials(self) -> None:
        """In a body of `reads_once`, read the trials anew when they are wanted next."""
        self._self_recalled.forget()

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials of a study."""

        def read(states: Container[TrialState] | None = None) -> list[FrozenTrial]:
            trials: list[FrozenTrial] = self._self_durably(
                lambda: self.__wrapped__.get_all_trials(study_id, deepcopy=deepcopy, states=states)
            )
            return trials

        recalled = None if deepcopy else self._self_recalled.find(study_id, states, read)
        return read(states) if recalled is None else recalled

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Store a trial. A running trial and its owner are stored in one transaction.

        If the storage's response is lost, the trial may be stored although the call has failed. Optuna's RDB
        storage may also have retried the call by itself and stored two trials. A retry here finds all these trials.
        """
        if template_trial is not None:
            return self._self_create_template(study_id, template_trial)
        created = self.spares.pop(0) if self.spares else self._self_create_running(study_id)
        self._self_mine.add(created)
        self._self_owner.running.add(created)
        return created

    def _self_create_running(self, study_id: int) -> int:
        storage, owner = self.__wrapped__, self._self_owner
        template = create_trial(state=TrialState.RUNNING, system_attrs={owner.key: owner.evidence})

        def create(is_repeated: bool) -> int:
            if is_repeated:
                self._self_find_spares(study_id)
            return self.spares.pop(0) if self.spares else int(storage.create_new_trial(study_id, template))

        created: int = self._self_durably(create, tells_repetition=True)
        self._self_unchecked = (study_id, created)
        return created

    def _self_find_spares(self, study_id: int) -> None:
        """Find the running trials that this search owns, but that no successful call of the search has returned."""
        running = self.__wrapped__.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        mine = sorted(trial_id(trial) for trial in running if self._self_owner.owns(trial))
        self._self_spares[:] = [each for each in mine if each not in self._self_mine]
        self._self_owner.running.update(self._self_spares)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial. The first read of a new trial checks that its number follows the number before."""
        trial: FrozenTrial = self._self_durably(lambda: self.__wrapped__.get_trial(trial_id))
        self._self_recalled.note(trial)
        study_id, created = self._self_unchecked
        if created == trial_id:
            self._self_unchecked = (-1, -1)
            # A gap in the numbers has one of two causes: another search has made a trial, or the storage has made one
            # of our trials twice.
            if trial.number != self._self_next_number:
                self._self_durably(lambda: self._self_find_spares(study_id))
            self._self_next_number = trial.number + 1
        return trial

    def _self_create_template(self, study_id: int, template: FrozenTrial) -> int:
        """Store a given trial, such as an enqueued trial, exactly once: the trial carries an id of the request."""
        self.forget_trials()
        storage, mark = self.__wrapped__, uuid.uuid4().hex
        marked = copy.deepcopy(template)
        marked.system_attrs = {**template.system_attrs, REQUEST: mark}

        def made() -> list[int]:
            trials = storage.get_all_trials(study_id, deepcopy=False)
            return [trial_id(trial) for trial in trials if trial.system_attrs.get(REQUEST) == mark]

        def create(is_repeated: bool) -> int:
            found = made() if is_repeated else []
            return found[0] if found else int(storage.create_new_trial(study_id, marked))

        created: int = self._self_durably(create, tells_repetition=True)
        if not template.state.is_finished():
            self._self_close([each for each in self._self_durably(made) if each != created])
        return created

    def read_anew(self, trial_id: int) -> FrozenTrial:
        """Return a trial as the storage has it, even if this process remembers it."""
        storage = self.__wrapped__
        read = storage.read_anew if isinstance(storage, RememberingStorage) else storage.get_trial
        trial: FrozenTrial = self._self_durably(lambda: read(trial_id))
        return trial

    def has_unseen_attr(self, trial_id: int, key: str) -> bool:
        """Return whether another process has given a trial a user attribute that this process does not know of."""
        storage = self.__wrapped__
        if not isinstance(storage, RememberingStorage):
            return False
        found: bool = self._self_durably(lambda: storage.has_user_attr(trial_id, key))
        return found

    def share(self, *trial_ids: int) -> None:
        """Note that other processes write to some trials, so that what this process remembers of them may be old."""
        if isinstance(self.__wrapped__, RememberingStorage):
            self.__wrapped__.share(*trial_ids)

    @property
    def takes_many_calls(self) -> bool:
        """Whether calls of several threads take less time than the same calls one after the other."""
        return isinstance(self.__wrapped__, RememberingStorage) and self.__wrapped__.is_on_server

    def gather(self, trial_id: int) -> None:
        """From now on, keep what is set for a trial until `write` stores it, if the storage can store all at once."""
        if isinstance(self.__wrapped__, RememberingStorage | GatheringJournalStorage):
            self.__wrapped__.gather(trial_id)

    def write(self, trial_id: int) -> None:
        """Store what was set for a trial since `gather`."""
        storage = self.__wrapped__
        if isinstance(storage, RememberingStorage | GatheringJournalStorage):
            self._self_durably(lambda: storage.write(trial_id))

    def adopt(self, trial: FrozenTrial) -> None:
        """Make this search the only owner of a running trial, which it continues."""
        adopted = trial_id(trial)
        self._self_mine.add(adopted)
        self._self_owner.running.add(adopted)
        self.set_trial_system_attr(adopted, self._self_owner.key, self._self_owner.evidence)
        for key in owner_keys(trial):
            if key != self._self_owner.key:
                self.set_trial_system_attr(adopted, key, None)

    def close_spares(self) -> None:
        """Close the running trials that the storage made by mistake and that no ask has taken.

        The closed trials do not count towards `n_trials`.
        """
        self._self_close(self.spares)
        self.spares.clear()

    def close_strays(self, study: str) -> None:
        """Close the running trials of this search in a study, after a call that asks for a trial has failed.

        A failed call may have stored a trial. All trials for which an ask has succeeded are told before this call.
        """
        study_id = self.get_study_id_from_name(study)
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        self._self_close([trial_id(trial) for trial in running if self._self_owner.owns(trial)])
        self.spares.clear()

    def _self_close(self, trials: Sequence[int]) -> None:
        for each in trials:
            self.set_trial_user_attr(each, LOST, True)
            self.set_trial_user_attr(each, ERROR, "The storage made this trial twice, or failed when it had made it.")
            self.set_trial_state_values(each, TrialState.FAIL)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        """Set a trial's state. Before a trial becomes RUNNING, its owner is stored."""
        self.forget_trials()
        storage, owner = self.__wrapped__, self._self_owner
        if state is TrialState.RUNNING:
            self._self_durably(lambda: storage.set_trial_system_attr(trial_id, owner.key, owner.evidence))

        is_new = trial_id not in self._self_mine
        if state is TrialState.RUNNING:
            self._self_mine.add(trial_id)  # before it runs: meanwhile another thread may look for spares

        def set_state(is_repeated: bool) -> bool:
            try:
                done = bool(storage.set_trial_state_values(trial_id, state, values))
            except UpdateFinishedTrialError:
                stored = storage.get_trial(trial_id) if is_repeated else None
                if stored is not None and stored.state is state and (values is None or stored.values == list(values)):
                    return True
                raise
            if not done and is_repeated and state is TrialState.RUNNING:
                stored = storage.get_trial(trial_id)
                return stored.state is TrialState.RUNNING and owner_keys(stored) == (owner.key,)
            return done

        done: bool = self._self_durably(set_state, tells_repetition=True)
        if state is not TrialState.RUNNING:
            owner.running.discard(trial_id)
        elif done:
            owner.running.add(trial_id)
        else:  # another search has acquired the trial
            if is_new:
                self._self_mine.discard(trial_id)
            with contextlib.suppress(UpdateFinishedTrialError):
                self._self_durably(lambda: storage.set_trial_system_attr(trial_id, owner.key, None))
        return done

    def _self_durably(self, call: Callable[..., T], *, tells_repetition: bool = False) -> T:
        """Call a method of the storage, and wait out outages.

        Args:
            tells_repetition: Whether `call` has an argument that tells whether an earlier attempt has failed.
        """
        return offload(lambda: self._self_retry(call, tells_repetition=tells_repetition))

    def _self_retry(self, call: Callable[..., T], *, tells_repetition: bool) -> T:
        started = time.monotonic()
        failed = False

        def attempt() -> T:
            mark = object()
            self._self_calls[mark] = time.monotonic()
            try:
                return call(failed) if tells_repetition else call()
            finally:
                del self._self_calls[mark]

        def may_pass(error: Exception) -> bool:
            nonlocal failed
            failed = True
            if not is_storage_outage(error) or _blocks_an_event_loop():
                return False
            if not self._self_warned and time.monotonic() - started > pauses.storage_warning:
                self._self_warned = True
                logger.warning(
                    "The storage of `%s` does not answer (%s). Retrying for at most %g s: finished trials are kept, "
                    "and told when the storage answers.",
                    self._self_what,
                    type(error).__name__,
                    pauses.storage_patience,
                )
            return True

        def patience() -> float:
            return pauses.storage_patience_at_end if self._self_ending.is_set() else pauses.storage_patience

        def wait(seconds: float) -> None:
            if self._self_ending.is_set():
                time.sleep(min(seconds, 0.2))
            else:
                self._self_ending.wait(seconds)

        waits = backoff(pauses.storage_first, pauses.storage_longest, patience)
        result = retry(attempt, waits, may_pass=may_pass, wait=wait)
        if failed and self._self_warned:
            self._self_warned = False
            logger.warning("The storage of `%s` answers again.", self._self_what)
        return result


def _blocks_an_event_loop() -> bool:
    """Return whether a wait in this thread would block an event loop.

    An event loop in one of this library's threads serves one job only, so blocking it is harmless.
    """
    return in_event_loop() and not in_own_thread()


def _durable(name: str) -> Callable[..., Any]:
    def method(self: DurableStorage, *args: Any, **kwargs: Any) -> Any:
        return self._self_durably(functools.partial(getattr(self.__wrapped__, name), *args, **kwargs))

    return method


for _name in dir(BaseStorage):
    if not _name.startswith("_") and _name not in vars(DurableStorage) and callable(getattr(BaseStorage, _name)):
        setattr(DurableStorage, _name, _durable(_name))
