"""Views of a study: objects with the study's trials, but with another storage object, sampler, or `stop` method."""

import contextlib
import copy
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from optuna_flyte_dsl._compat.optuna import set_storage, share_cache_of_trials, with_trials
from optuna_flyte_dsl._offload import offload
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._proxy import Proxy
from optuna_flyte_dsl._threads import in_event_loop


class _AnnouncingSampler(Proxy):
    """A wrapper of a sampler that reports each new trial at once, so that its number is known even if sampling fails.

    One thread asks for trials, and others may tell trials at the same time: these calls of the sampler take turns.

    Args:
        announce: Called with the number of each trial that an ask has stored.
        patience: Returns for how many seconds the end of a trial may wait for a sampler that does not return.
    """

    def __init__(self, sampler: BaseSampler, announce: Callable[[int], None], patience: Callable[[], float]) -> None:
        super().__init__(sampler)
        self._self_announce = announce
        self._self_patience = patience
        self._self_lock = threading.RLock()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Announce the trial. Optuna calls `before_trial` before the trial is sampled."""
        self._self_announce(trial.number)
        with self._self_lock:
            self.__wrapped__.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        with self._self_lock:
            space: dict[str, BaseDistribution] = self.__wrapped__.infer_relative_search_space(study, trial)
            return space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with self._self_lock:
            params: dict[str, Any] = self.__wrapped__.sample_relative(study, trial, search_space)
            return params

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        # An async objective suggests in the event loop, which must not wait.
        with contextlib.nullcontext() if in_event_loop() else self._self_lock:
            return self.__wrapped__.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        while not self._self_lock.acquire(timeout=min(self._self_patience(), pauses.silence_check)):
            if self._self_patience() <= 0:
                return  # the sampler hangs while the search ends, and the trial is told without it
        try:
            self.__wrapped__.after_trial(study, trial, state, values)
        finally:
            self._self_lock.release()


class _OffloadingPruner(Proxy):
    """A wrapper of a pruner that an async objective asks in a thread: some pruners read and compare all trials."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether a trial is to be pruned. `trial.should_prune` calls this."""
        return offload(lambda: bool(self.__wrapped__.prune(study, trial)))


def view_of(
    study: optuna.Study,
    *,
    stop: Callable[[], None] = lambda: None,
    announce: Callable[[int], None] | None = None,
    patience: Callable[[], float] = lambda: math.inf,
    storage: Any = None,
    pruner: BasePruner | None = None,
) -> optuna.Study:
    """Return a view of a study, for a search and its callbacks.

    Pickling or copying the view gives the study itself, without the view.

    Args:
        announce: Called with the number of each trial that an ask has stored.
        patience: Returns for how many seconds the end of a trial may wait for a sampler that does not return.
    """

    class View(type(study)):  # type: ignore[misc]
        def stop(self) -> None:
            stop()

        def __copy__(self) -> optuna.Study:
            return copy.copy(study)

        def __reduce_ex__(self, _protocol: Any) -> Any:
            return _itself, (study,)

    View.__name__ = View.__qualname__ = type(study).__name__
    view = copy.copy(study)
    view.__class__ = View
    share_cache_of_trials(view)
    if storage is not None:
        set_storage(view, storage)
    if pruner is not None or storage is not None:
        vars(view)["pruner"] = _OffloadingPruner(pruner or study.pruner)
    # A RandomSampler cannot fail, and each attribute access through a proxy takes time.
    if announce is not None and type(study.sampler) is not RandomSampler:
        vars(view)["sampler"] = _AnnouncingSampler(study.sampler, announce, patience)
    return view


def snapshot_of(view: optuna.Study, trials: Sequence[FrozenTrial], sampler: BaseSampler) -> optuna.Study:
    """Return a view in which a sampler sees only the given trials, even if other trials are told later."""
    snapshot = _copy_of(view, with_trials(type(view), trials))
    share_cache_of_trials(snapshot)
    vars(snapshot)["sampler"] = sampler
    return snapshot


def preview_of(view: optuna.Study, storage: Any) -> optuna.Study:
    """Return a view with another storage object, for a suggestion that must not be stored."""
    preview = _copy_of(view, type(view))
    set_storage(preview, storage)
    return preview


def _copy_of(view: optuna.Study, kind: type[optuna.Study]) -> optuna.Study:
    # `copy.copy` of a view returns a copy of the study itself.
    other: optuna.Study = object.__new__(kind)
    vars(other).update(vars(view))
    return other


def _itself(study: optuna.Study) -> optuna.Study:
    return study
