"""Private names of Optuna."""

import copy
import json
import math
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import GPSampler, GridSampler, TPESampler
from optuna.samplers._gp import sampler as gp_sampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study._tell import _tell_with_warning
from optuna.trial import BaseTrial, FrozenTrial, Trial, TrialState


def trial_id(trial: Trial | FrozenTrial) -> int:
    """Return a trial's id in its storage: the id that the methods of a storage take.

    A trial's id is unique in its storage; its number is unique in its study only.
    """
    return trial._trial_id


def storage_of(study: optuna.Study) -> BaseStorage:
    """Return a study's storage, to open a view of the study, to lock it, or to serve it."""
    return study._storage


def engine_of(storage: BaseStorage) -> Any:
    """Return the SQLAlchemy engine of a storage, to take locks in its database; `None` if it has none."""
    return getattr(getattr(storage, "_backend", storage), "engine", None)


def create_missing_indexes(storage: BaseStorage) -> None:
    """Create the indexes of Optuna's tables that a database lacks.

    Optuna creates a table, and then its indexes. If it is interrupted between them, its next attempt finds the table
    and creates no index. Without the unique index on the names of studies, two searches make two studies of one name.
    """
    engine = engine_of(storage)
    if engine is None:
        return
    import sqlalchemy  # loaded late: not every search needs it
    from optuna.storages._rdb.models import BaseModel

    inspector = sqlalchemy.inspect(engine)
    for table in BaseModel.metadata.sorted_tables:
        if table.indexes:
            known = {index["name"] for index in inspector.get_indexes(table.name)}
            for index in table.indexes:
                if index.name not in known:
                    index.create(engine)


def journal_lock_of(storage: BaseStorage) -> Any:
    """Return the lock of a journal storage's file, to hold it during several writes; `None` if there is no lock."""
    return getattr(getattr(storage, "_backend", None), "_lock", None)


def enqueued_params(trial: Trial) -> dict[str, Any]:
    """Return the parameters that a trial was enqueued with, to tell bad enqueued values from other errors."""
    params: dict[str, Any] = trial._fixed_params
    return params


def enqueued_params_of(trial: FrozenTrial) -> dict[str, Any] | None:
    """Return the parameters that a stored trial was enqueued with; `None` if it was not enqueued."""
    params: dict[str, Any] | None = trial.system_attrs.get("fixed_params")
    return params


def known_trials(study: optuna.Study, states: Sequence[TrialState] | None = None) -> list[FrozenTrial]:
    """Return the trials that a study knew at the last ask, all or those of some states, as Optuna's samplers see them.

    `study.get_trials()` would ask the storage again for each sampler.
    """
    return study._get_trials(deepcopy=False, states=None if states is None else tuple(states), use_cache=True)


def trials_to_read(study: optuna.Study, *, as_of_ask: bool = False) -> Sequence[FrozenTrial]:
    """Return all trials of a study, to look at some of them at once. An in-memory storage makes no copy of its list.

    Args:
        as_of_ask: Whether trials that were known at the last ask suffice.
    """
    if type(study._storage) is InMemoryStorage:
        trials: list[FrozenTrial] = study._storage._studies[study._study_id].trials
        return trials
    return known_trials(study) if as_of_ask else study.get_trials(deepcopy=False)


def stored_trial(study: optuna.Study, trial_id: int) -> Trial:
    """Return a trial that the study has, to run it. What is known of the other trials is read anew, as at an ask."""
    study._thread_local.cached_all_trials = None
    return Trial(study, trial_id)


def study_key(study: optuna.Study) -> tuple[weakref.ref[Any], int]:
    """Return a key that is the same for all objects of a study in this process. The call does not use the storage.

    A HyperbandPruner gives samplers another object of the study at each ask. The key of a study whose storage is gone
    equals no other key, though a new storage may have the `id` of that one.
    """
    return weakref.ref(study._storage), study._study_id


def add_to_study_attribute(study: optuna.Study, name: str, value: Any) -> None:
    """Append a value to a list among the user attributes of a study, unless the list has it.

    The object of a study that a HyperbandPruner gives to samplers has no attributes.
    """
    storage, study_id = study._storage, study._study_id
    values = storage.get_study_user_attrs(study_id).get(name, [])
    if value not in values:
        storage.set_study_user_attr(study_id, name, [*values, value])


def gp_knows_running_trials() -> bool:
    """Return whether this Optuna's GPSampler integrates over what running trials may return. Optuna 4 cannot."""
    return "_n_qmc_samples_qei" in GPSampler.__init__.__code__.co_names


def point_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters of a trial: those of a running trial may be sampled, and not be suggested yet."""
    params: dict[str, Any] = gp_sampler._get_params(trial) if gp_knows_running_trials() else trial.params
    return params


def store_point(study: optuna.Study, trial: FrozenTrial, params: Mapping[str, Any]) -> None:
    """Store the sampled parameters of a trial before they are suggested, as a GPSampler does, for other samplers."""
    if not gp_knows_running_trials():
        return
    try:
        text = json.dumps(params)
    except (TypeError, ValueError):  # JSON has no form for a choice
        return
    most = gp_sampler._SYSTEM_ATTR_MAX_LENGTH
    for place in range(0, len(text), most):
        name = f"{gp_sampler._RELATIVE_PARAMS_KEY}:{place // most}"
        study._storage.set_trial_system_attr(trial._trial_id, name, text[place : place + most])


def set_number_of_good_trials(sampler: TPESampler, number: Callable[[int], int]) -> None:
    """Set how many trials a TPESampler takes for good ones, as a function of the number of trials.

    Optuna has deprecated the argument `gamma`, which does the same.
    """
    sampler._gamma = number


def expect_lengthscales(sampler: GPSampler, median: Callable[[int], float], spread: float) -> None:
    """Make a GPSampler expect lengthscales near a median.

    Its prior is multiplied by a normal density of each lengthscale's logarithm.

    Args:
        median: Returns the median for a number of parameters. The range of each parameter has the length 1.
        spread: The standard deviation of a lengthscale's natural logarithm.
    """
    own = sampler._log_prior

    def log_prior(model: Any) -> Any:
        logarithms = -0.5 * model.inverse_squared_lengthscales.log()
        deviations = (logarithms - math.log(median(len(logarithms)))) / spread
        return own(model) - 0.5 * (deviations**2).sum()

    sampler._log_prior = log_prior


_TELL = optuna.Study.tell
_SUGGEST = (Trial.suggest_float, Trial.suggest_int, Trial.suggest_categorical)


def suggests_as_optuna(trial: BaseTrial) -> bool:
    """Return whether a trial suggests by Optuna's own methods: its class is Optuna's, and nobody has patched that."""
    return type(trial) is Trial and (Trial.suggest_float, Trial.suggest_int, Trial.suggest_categorical) == _SUGGEST


def suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    """Return what a trial that `suggests_as_optuna` suggests from a distribution.

    The public methods inspect their own signature, and make a distribution, in each call.
    """
    # A copy, because a sampler or a callback may change it. `copy.copy` takes ten times as long.
    own = object.__new__(type(distribution))
    vars(own).update(vars(distribution))
    is_known = name in trial._cached_frozen_trial.distributions
    value = trial._suggest(name, own)
    if is_known:
        trial._check_distribution(name, own)
    return value


def tell(
    study: optuna.Study, trial: Trial, values: Sequence[float] | None, state: TrialState, *, skip_if_finished: bool
) -> FrozenTrial:
    """Tell a study how a trial ended, as `Study.tell` does. Return the trial, which must not be changed.

    `Study.tell` returns a deep copy of the trial, which takes two thirds of its time.
    """
    if type(study).tell is not _TELL or "tell" in vars(study):  # the user's own
        return study.tell(trial, values, state=state, skip_if_finished=skip_if_finished)
    _tell_with_warning(study, trial, values, state, skip_if_finished)
    return study._storage.get_trial(trial._trial_id)


def grid_size(sampler: GridSampler) -> int:
    """Return the number of points of a grid sampler's own grid."""
    return sampler._n_min_trials


def set_enqueued_params(trial: Trial, params: Mapping[str, Any]) -> None:
    """Make a trial that is already asked for suggest given parameters, as if it had been enqueued with them."""
    trial._fixed_params = dict(params)


def cached_trial(trial: Trial) -> FrozenTrial:
    """Return what a trial knows of itself, such as what it has suggested so far, without calling the storage."""
    return trial._cached_frozen_trial


def refresh(trial: Trial) -> None:
    """Read a trial anew, because another process has reported to it. The call blocks."""
    trial._cached_frozen_trial = trial.storage.get_trial(trial._trial_id)


def detached_trial(study: optuna.Study, trial: Trial) -> Trial:
    """Return a second object for a trial.

    Sampling with the second object changes neither the first object nor the trial that an in-memory storage holds.
    """
    detached = Trial(study, trial._trial_id)
    detached._cached_frozen_trial = copy.deepcopy(detached._cached_frozen_trial)
    return detached


class _SharedCache:
    """Replaces the `threading.local` object of a study by attributes that all threads share.

    Optuna clears a study's cache of trials only in the thread that asks and tells. In another thread, a suggestion
    would see an old history.

    `Study._get_trials` tests whether `cached_all_trials` is None, and then reads it once more. In between, another
    thread may clear the cache. So the second read of a thread returns what its first read has returned.
    """

    in_optimize_loop = False

    def __init__(self) -> None:
        self._trials: list[FrozenTrial] | None = None
        self._found = threading.local()

    @property
    def cached_all_trials(self) -> list[FrozenTrial] | None:
        found: list[FrozenTrial] | None = getattr(self._found, "trials", None)
        if found is not None:
            self._found.trials = None
            return found
        self._found.trials = found = self._trials
        return found

    @cached_all_trials.setter
    def cached_all_trials(self, trials: list[FrozenTrial] | None) -> None:
        self._trials = self._found.trials = trials


def share_cache_of_trials(study: optuna.Study) -> None:
    """Make all threads that use a study see the same history."""
    vars(study)["_thread_local"] = _SharedCache()


def set_storage(study: optuna.Study, storage: Any) -> None:
    """Make a view of a study use another storage object, such as one that retries its calls."""
    vars(study)["_storage"] = storage


def with_trials(kind: type[optuna.Study], trials: Sequence[FrozenTrial]) -> type[optuna.Study]:
    """Return a class of study in which samplers see the given trials only."""

    class Snapshot(kind):  # type: ignore[misc, valid-type]
        def _get_trials(self, deepcopy: bool = True, states: Any = None, use_cache: bool = False) -> list[FrozenTrial]:  # noqa: ARG002
            found = [trial for trial in trials if states is None or trial.state in states]
            return copy.deepcopy(found) if deepcopy else found

    return Snapshot
