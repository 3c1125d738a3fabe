"""`RememberingStorage`: a proxy of a database that needs few statements, because it remembers the trials of a study."""

import bisect
import copy
import json
import operator
import threading
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from optuna_flyte_dsl._compat import optuna_database as sql
from optuna_flyte_dsl._compat.optuna import trial_id as id_of
from optuna_flyte_dsl._proxy import Proxy

_NUMBER = operator.attrgetter("number")


@dataclass(eq=False)
class _Study:
    """What is remembered of one study."""

    study_id: int
    trials: list[FrozenTrial] = field(default_factory=list)  # in the order of their numbers
    places: dict[int, int] = field(default_factory=dict)  # a trial's id -> its index in `trials`
    unfinished: set[int] = field(default_factory=set)
    # The unfinished trials that only this storage object changes, except that another search may end them.
    own: set[int] = field(default_factory=set)
    newest: int = -1  # all trials whose ids are at most this one are remembered
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)

    def trial(self, trial_id: int) -> FrozenTrial:
        return self.trials[self.places[trial_id]]

    def put(self, trial: FrozenTrial) -> None:
        """Remember a trial in place of what was remembered of it. Lists that were given out do not change."""
        trial_id = id_of(trial)
        if trial_id in self.places:
            self.trials[self.places[trial_id]] = trial
        else:
            bisect.insort(self.trials, trial, key=_NUMBER)
            if self.trials[-1] is trial:
                self.places[trial_id] = len(self.trials) - 1
            else:
                self.places = {id_of(each): place for place, each in enumerate(self.trials)}
        if trial.state.is_finished():
            self.unfinished.discard(trial_id)
            self.own.discard(trial_id)
        else:
            self.unfinished.add(trial_id)

    def must_read(self, trial_id: int, state: TrialState) -> bool:
        """Return whether a trial, which has a state now, is to be read anew."""
        if trial_id not in self.places:
            return True
        known = self.trial(trial_id).state
        if known.is_finished():
            return False
        # Nobody changes a waiting trial but for its state. Another search's running trial gets parameters and reports.
        return state is not known or (state is TrialState.RUNNING and trial_id not in self.own)


@dataclass
class _Batch:
    """What is to be written of one trial in one transaction."""

    params: dict[str, tuple[float, BaseDistribution]] = field(default_factory=dict)
    user_attrs: dict[str, Any] = field(default_factory=dict)
    system_attrs: dict[str, Any] = field(default_factory=dict)


class RememberingStorage(Proxy):
    """A proxy of a storage in a database, which remembers the trials that it has read or written.

    Optuna reads all unfinished trials of a study anew, with their parameters and attributes, at each ask, and a trial
    at each tell. What this process has written itself need not be read: one short statement tells which trials other
    processes have made or ended, and these are read. A trial that another process writes to is named by `share`.

    Args:
        storage: The storage that is asked for everything else.
        database: The same storage in its database, without Optuna's cache.
    """

    def __init__(self, storage: BaseStorage, database: RDBStorage) -> None:
        super().__init__(storage)
        self._self_database = database
        self._self_lock = threading.RLock()  # held for moments, never during a call of the database
        self._self_look_lock = threading.Lock()
        self._self_studies: dict[int, _Study] = {}
        self._self_study_of: dict[int, _Study] = {}  # a remembered trial's id -> its study
        self._self_batches: dict[int, _Batch] = {}
        self._self_unread: set[int] = set()  # trials that this storage object has made, and that nobody has read yet

    @property
    def is_on_server(self) -> bool:
        """Whether the database serves several connections at once. SQLite is a file that one connection locks."""
        return self._self_database.engine.dialect.name != "sqlite"

    def _self_look(self, study_id: int) -> _Study:
        """Read what other processes have changed in a study."""
        database = self._self_database
        with self._self_look_lock:
            with self._self_lock:
                study = self._self_studies.setdefault(study_id, _Study(study_id))
                asked, newest = set(study.unfinished), study.newest
            if newest < 0:
                found = sql.read_trials(database, study_id)
            else:
                states = sql.read_states(database, study_id, asked, newest)
                newest = max(newest, *states) if states else newest
                with self._self_lock:
                    changed = {each for each, state in states.items() if study.must_read(each, state)}
                if not changed and states.keys() >= asked:
                    found = []
                else:  # a study that was deleted raises a KeyError
                    found = sql.read_trials(database, study_id, changed, newest)
            with self._self_lock:
                self._self_merge(study, found)
                study.newest = max([newest, *map(id_of, found)])
            return study

    def _self_merge(self, study: _Study, found: Iterable[FrozenTrial]) -> None:
        for trial in found:
            if study.must_read(id_of(trial), trial.state):
                study.own.discard(id_of(trial))
                study.put(trial)
                self._self_study_of[id_of(trial)] = study

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials of a study, as Optuna's storages do."""
        study = self._self_look(study_id)
        with self._self_lock:
            trials = study.trials
            if states is not None:
                if not any(state in states for state in TrialState if state.is_finished()):
                    trials = sorted(map(study.trial, study.unfinished), key=_NUMBER)
                trials = [trial for trial in trials if trial.state in states]
            trials = list(trials)
        return copy.deepcopy(trials) if deepcopy else trials

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial. Of a trial that only this storage object changes, no more than its state is read."""
        with self._self_lock:
            study = self._self_study_of.get(trial_id)
            is_own = study is not None and trial_id in study.own
            is_known = study is not None and (is_own or study.trial(trial_id).state.is_finished())
        if study is None or not is_known:
            return self.read_anew(trial_id)
        if is_own and trial_id not in self._self_unread:
            states = sql.read_states(self._self_database, study.study_id, {trial_id}, None)
            if states.get(trial_id) is not TrialState.RUNNING:
                return self.read_anew(trial_id)
        with self._self_lock:
            self._self_unread.discard(trial_id)
            return _copied(study.trial(trial_id))

    def get_trial_params(self, trial_id: int) -> dict[str, Any]:
        """Return a trial's parameters."""
        return self.get_trial(trial_id).params

    def get_trial_user_attrs(self, trial_id: int) -> dict[str, Any]:
        """Return a trial's user attributes."""
        return self.get_trial(trial_id).user_attrs

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        """Return a trial's system attributes: samplers read them while they sample."""
        return self.get_trial(trial_id).system_attrs

    def read_anew(self, trial_id: int) -> FrozenTrial:
        """Return a trial as the database has it, for example to see whether another search has taken it over."""
        trial = self._self_database.get_trial(trial_id)
        with self._self_lock:
            if (study := self._self_study_of.get(trial_id)) is not None:
                self._self_merge(study, [trial])
        return _copied(trial)

    def has_user_attr(self, trial_id: int, key: str) -> bool:
        """Return whether a trial has a user attribute that another process may have set."""
        if not sql.has_user_attr(self._self_database, trial_id, key):
            return False
        trial = self._self_database.get_trial(trial_id)
        with self._self_lock:
            if (study := self._self_study_of.get(trial_id)) is not None:
                study.put(trial)
        return True

    def share(self, *trial_ids: int) -> None:
        """Read some trials anew at each look from now on, because other processes write to them."""
        with self._self_lock:
            for trial_id in trial_ids:
                if (study := self._self_study_of.get(trial_id)) is not None:
                    study.own.discard(trial_id)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Store a trial, and remember it."""
        if study_id not in self._self_studies:
            self._self_look(study_id)
        created = sql.create_trial(self._self_database, study_id, template_trial)
        trial_id = id_of(created)
        created.user_attrs = {key: _as_stored(value) for key, value in created.user_attrs.items()}
        created.system_attrs = {key: _as_stored(value) for key, value in created.system_attrs.items()}
        with self._self_lock:
            study = self._self_study_of[trial_id] = self._self_studies[study_id]
            last = study.trials[-1].number if study.trials else -1
            if created.number == len(study.trials) == last + 1:  # no trial of another search is missing
                study.newest = max(study.newest, trial_id)
            if created.state is TrialState.RUNNING:
                study.own.add(trial_id)
                self._self_unread.add(trial_id)
            study.put(created)
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state and values, after what was gathered."""
        if trial_id in self._self_batches:
            self.write(trial_id)
        try:
            done = bool(self._self_database.set_trial_state_values(trial_id, state, values))
        except UpdateFinishedTrialError:
            self.share(trial_id)
            raise
        with self._self_lock:
            study = self._self_study_of.get(trial_id)
            if study is None or not done:
                return done
            if state.is_finished() and trial_id in study.own:
                trial = _copied(study.trial(trial_id))
                trial.state, trial.values, trial.datetime_complete = state, values, datetime.now()
                study.put(trial)
                return done
            study.own.discard(trial_id)
        self.read_anew(trial_id)
        if state is TrialState.RUNNING:
            with self._self_lock:
                study.own.add(trial_id)
        return done

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a trial's parameter."""
        with self._self_lock:
            study = self._self_study_of.get(trial_id)
            known = study.distributions.get(param_name) if study is not None else None
        if study is None or known is None:  # Optuna compares the distribution with the one in the database
            self._self_database.set_trial_param(trial_id, param_name, param_value_internal, distribution)
        else:
            check_distribution_compatibility(known, distribution)
            self._self_write(trial_id, _Batch(params={param_name: (param_value_internal, distribution)}))

        def change(trial: FrozenTrial) -> None:
            trial.params[param_name] = distribution.to_external_repr(param_value_internal)
            trial.distributions[param_name] = distribution

        self._self_change(trial_id, change)
        if study is not None:
            study.distributions[param_name] = distribution

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a trial's user attribute."""
        stored = _as_stored(value)
        self._self_write(trial_id, _Batch(user_attrs={key: stored}))
        self._self_change(trial_id, lambda trial: operator.setitem(trial.user_attrs, key, stored))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a trial's system attribute."""
        stored = _as_stored(value)
        self._self_write(trial_id, _Batch(system_attrs={key: stored}))
        self._self_change(trial_id, lambda trial: operator.setitem(trial.system_attrs, key, stored))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set a value that a trial has reported."""
        self._self_database.set_trial_intermediate_value(trial_id, step, intermediate_value)
        value = float(intermediate_value)
        self._self_change(trial_id, lambda trial: operator.setitem(trial.intermediate_values, step, value))

    def _self_change(self, trial_id: int, change: Callable[[FrozenTrial], None]) -> None:
        """Change what is remembered of an unfinished trial."""
        with self._self_lock:
            study = self._self_study_of.get(trial_id)
            if study is not None and not study.trial(trial_id).state.is_finished():
                trial = _copied(study.trial(trial_id))
                change(trial)
                study.put(trial)

    def _self_write(self, trial_id: int, written: _Batch) -> None:
        batch = self._self_batches.get(trial_id)
        if batch is not None:
            batch.params |= written.params
            batch.user_attrs |= written.user_attrs
            batch.system_attrs |= written.system_attrs
            return
        try:
            sql.write_together(self._self_database, trial_id, written.params, written.user_attrs, written.system_attrs)
        except UpdateFinishedTrialError:
            self.share(trial_id)
            raise

    def gather(self, trial_id: int) -> None:
        """From now on, keep what is set for a trial, until `write` stores all of it in one transaction."""
        self._self_batches[trial_id] = _Batch()
        with self._self_lock:  # an adopted trial is this search's own from now on
            study = self._self_study_of.get(trial_id)
            if study is not None and study.trial(trial_id).state is TrialState.RUNNING:
                study.own.add(trial_id)

    def write(self, trial_id: int) -> None:
        """Store what was set for a trial since `gather`. If that fails, the call can be repeated."""
        batch = self._self_batches.pop(trial_id, _Batch())
        if batch != _Batch():
            try:
                self._self_write(trial_id, batch)
            except BaseException:
                self._self_batches[trial_id] = batch
                raise


def remembering(storage: BaseStorage) -> BaseStorage:
    """Return a `RememberingStorage` for a storage in a database; another storage is returned as it is."""
    database = sql.database_of(storage)
    return cast("BaseStorage", RememberingStorage(storage, database)) if database is not None else storage


def _copied(trial: FrozenTrial) -> FrozenTrial:
    """Return a copy of a trial that can be changed. The values of its attributes are shared."""
    copied = copy.copy(trial)
    copied.params, copied.distributions = dict(trial.params), dict(trial.distributions)
    copied.user_attrs, copied.system_attrs = dict(trial.user_attrs), dict(trial.system_attrs)
    copied.intermediate_values = dict(trial.intermediate_values)
    return copied


def _as_stored(value: Any) -> Any:
    """Return an attribute's value as the database gives it back: it is stored as JSON."""
    return json.loads(json.dumps(value))
