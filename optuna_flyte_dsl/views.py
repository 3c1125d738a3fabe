"""What a search sees of a study: the same trials, with a `stop` of its own, and a cache that all threads share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import optuna
import wrapt
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial


class Recorder(wrapt.BaseObjectProxy):  # type: ignore[type-arg, misc, unused-ignore]
    """A sampler that says which trial an ask has stored: it is told before anything else can fail."""

    def __init__(self, sampler: BaseSampler, note: Callable[[int], None]) -> None:
        super().__init__(sampler)
        self._self_note = note

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Note the trial; Optuna calls this first."""
        self._self_note(trial.number)
        self.__wrapped__.before_trial(study, trial)


class _SharedAttributes:
    """Stands for what a study keeps for each thread.

    Optuna clears its cache of trials in the thread that asks and tells. A trial that suggests in another thread would
    see the history as it was when that thread first looked.
    """

    in_optimize_loop = False
    cached_all_trials = None


def view_of(
    study: optuna.Study,
    stop: Callable[[], None],
    note: Callable[[int], None],
    storage: Any = None,
) -> optuna.Study:
    """Return a view of a study whose `stop` ends a search: Optuna's own works inside `study.optimize` only.

    Callbacks get it. Where one pickles or copies it, that is done to the study itself.

    Args:
        study: The study.
        stop: Ends the search.
        note: Hears of each trial that is asked for.
        storage: Stands before the study's own.
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
    vars(view)["_thread_local"] = _SharedAttributes()
    if storage is not None:
        vars(view)["_storage"] = storage
    if type(study.sampler) is not RandomSampler:  # that one cannot fail, and each look through a proxy costs
        vars(view)["sampler"] = Recorder(study.sampler, note)
    return view


def kept_view(study: optuna.Study, storage: Any) -> optuna.Study:
    """Return a view of a study through what stands before its storage."""
    return view_of(study, lambda: None, lambda _: None, storage)


def snapshot_of(view: optuna.Study, trials: Sequence[FrozenTrial], sampler: BaseSampler) -> optuna.Study:
    """Return a view in which a sampler sees these trials only, whatever is told meanwhile.

    Args:
        view: The view of a study.
        trials: What the sampler sees.
        sampler: The sampler.
    """

    class Snapshot(type(view)):  # type: ignore[misc]
        def _get_trials(self, deepcopy: bool = True, states: Any = None, use_cache: bool = False) -> list[FrozenTrial]:  # noqa: ARG002
            found = [trial for trial in trials if states is None or trial.state in states]
            return copy.deepcopy(found) if deepcopy else found

    return changed(view, Snapshot, _thread_local=_SharedAttributes(), sampler=sampler)


def changed(view: optuna.Study, kind: type[optuna.Study], **attributes: Any) -> optuna.Study:
    """Return another view of the same study; a copy of a view is one of the study itself.

    Args:
        view: The view.
        kind: The class of the new one.
        **attributes: What is other in it.
    """
    other: optuna.Study = object.__new__(kind)
    vars(other).update(vars(view), **attributes)
    return other


def _itself(study: optuna.Study) -> optuna.Study:
    return study
