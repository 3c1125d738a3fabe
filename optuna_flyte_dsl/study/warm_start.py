"""Inserts the trials of earlier studies into the study of a search, where they fit its space."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._text import counted, shown
from optuna_flyte_dsl.errors import ArgumentError, InvalidOptionError
from optuna_flyte_dsl.options import WarmStart
from optuna_flyte_dsl.space import domain
from optuna_flyte_dsl.space.annotations import listed
from optuna_flyte_dsl.space.directions import direction_names
from optuna_flyte_dsl.space.markers import Ordinal, Suggestion, same
from optuna_flyte_dsl.space.objective import Objective
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.study.attributes import ORDINALS, PREFIX, WARM_START
from optuna_flyte_dsl.study.storages import open_storage

_SHOWN_NUMBERS = 5


class _DoesNotFit(Exception):  # noqa: N818 - no user sees it
    """Raised, with the reason, for a trial that does not fit."""


@dataclass(frozen=True)
class WarmStarter:
    """Inserts earlier trials into a study.

    Args:
        study: The study of the search.
        space: The space of the search.
    """

    study: optuna.Study
    objective: Objective
    space: SearchSpace

    def insert(self, source: WarmStart) -> int:
        """Insert the finished trials of earlier studies that fit. Return how many were inserted. The call blocks.

        A trial that an earlier call has inserted is not inserted again. The trials that do not fit are counted in a
        warning, by the reason.

        Raises:
            InvalidOptionError: If the source has no study.
        """
        mine = self.study.get_trials(deepcopy=False)
        there = [trial.user_attrs.get(WARM_START) for trial in mine]
        n_inserted, n_known = 0, 0
        misfits: dict[str, list[str]] = collections.defaultdict(list)
        for earlier in studies_of(source):
            trials = earlier.get_trials(deepcopy=False)
            if earlier.study_name == self.study.study_name and _are_of_one_study(trials, mine):
                continue
            ordinals = earlier.user_attrs.get(ORDINALS, {})
            for trial in trials:
                if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
                    continue
                mark = {"study": earlier.study_name, "trial": trial.number}
                if mark in there:
                    n_known += 1
                    continue
                try:
                    fitting = self._fitted(trial, earlier.directions, ordinals)
                except _DoesNotFit as reason:
                    misfits[str(reason)].append(f"{trial.number} of {earlier.study_name}")
                    continue
                fitting.user_attrs[WARM_START] = mark
                self.study.add_trial(fitting)
                n_inserted += 1
        self._report(n_inserted, n_known, misfits)
        return n_inserted

    def _fitted(
        self, trial: FrozenTrial, directions: Sequence[Any], ordinals: Mapping[str, Sequence[str]]
    ) -> FrozenTrial:
        """Return a trial as one of the study of the search.

        Raises:
            _DoesNotFit: If it is none.
        """
        if list(directions) != self.study.directions:
            raise _DoesNotFit(
                f"their study has the directions {direction_names(directions)}, and this one "
                f"{direction_names(self.study.directions)}"
            )
        params, distributions = trial.params, trial.distributions
        if not self.objective.suggests_itself:
            params = self._fitted_params(trial, ordinals)
            every = self.space.distributions()
            distributions = {name: every[name] for name in params}
        fitted = create_trial(
            state=trial.state,
            values=trial.values if trial.state is TrialState.COMPLETE else None,
            params=params,
            distributions=distributions,
            user_attrs={name: each for name, each in trial.user_attrs.items() if not name.startswith(PREFIX)},
            system_attrs={name: each for name, each in trial.system_attrs.items() if name.startswith("constraints")},
            intermediate_values=trial.intermediate_values,
        )
        fitted.datetime_start, fitted.datetime_complete = trial.datetime_start, trial.datetime_complete
        return fitted

    def _fitted_params(self, trial: FrozenTrial, ordinals: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        space, fixed = self.space, self.space.fixed_values()
        params = {name: _restored(space.get(name), trial, name, ordinals.get(name)) for name in trial.params}
        for name, value in params.items():
            if name not in space:
                if name not in fixed:
                    raise _DoesNotFit(f"this search has no parameter `{name}`")
                if not same(fixed[name], value):
                    raise _DoesNotFit(f"`{name}` is {shown(fixed[name])} in this search")
        searched = {name: each for name, each in params.items() if name in space}
        try:
            active = space.active_in(searched)
        except ArgumentError as error:
            raise _DoesNotFit(str(error)) from error
        if missing := [name for name in space if name in active and name not in searched]:
            raise _DoesNotFit(f"they lack {listed(missing)}")
        for name in active:
            marker = space[name].stored
            if not domain.contains(marker, searched[name]):
                raise _DoesNotFit(f"`{name}` lies outside of {space[name]!r}")
        return {name: each for name, each in searched.items() if name in active}

    def _report(self, n_inserted: int, n_known: int, misfits: Mapping[str, Sequence[str]]) -> None:
        known = f", and {n_known} were there already" if n_known else ""
        text = f"`{self.objective.name}` begins with {counted(n_inserted, 'earlier trial')}{known}."
        if not misfits:
            logger.info("%s", text)
            return
        reasons = [f"{_numbers(each)}: {reason}" for reason, each in misfits.items()]
        n_misfits = sum(map(len, misfits.values()))
        logger.warning("%s %d do not fit, and are left out. %s.", text, n_misfits, ". ".join(reasons))


def _are_of_one_study(one: Sequence[FrozenTrial], other: Sequence[FrozenTrial]) -> bool:
    """Return whether the trials of two studies of one name are those of one study, which was opened twice."""
    return bool(one and other) and one[0].datetime_start == other[0].datetime_start and one[0].params == other[0].params


def _restored(marker: Suggestion | None, trial: FrozenTrial, name: str, before: Sequence[str] | None) -> Any:
    """Return what Optuna stores in this search for a parameter of an earlier trial.

    Optuna stores the index of a choice of an `Ordinal`, and the earlier choices may stand in another order.

    Args:
        marker: The parameter's marker; `None` if this search has no such parameter.
        before: The choices of the earlier `Ordinal` as text; `None` if the parameter was none, or that is not known.
    """
    stored = trial.params[name]
    if isinstance(marker, Ordinal):
        if before is None and trial.distributions[name] == marker.to_distribution():
            return stored
        if before is not None:
            stored = before[stored]
        labels: list[Any] = marker.labels if before is not None else list(marker.choices)
        found = [index for index, each in enumerate(labels) if same(each, stored)]
        if not found:
            raise _DoesNotFit(f"`{name}` lies outside of {marker!r}")
        return found[0]
    if before is not None:
        label = before[stored]
        known = [each for each in getattr(marker, "choices", ()) if repr(each) == label or each == label]
        if not known:
            raise _DoesNotFit(f"`{name}` was one of the choices {list(before)} of an Ordinal")
        return known[0]
    return stored


def _numbers(trials: Sequence[str]) -> str:
    several = f" and {len(trials) - _SHOWN_NUMBERS} more" if len(trials) > _SHOWN_NUMBERS else ""
    return f"Trial {', '.join(trials[:_SHOWN_NUMBERS])}{several}"


def studies_of(source: WarmStart) -> Iterator[optuna.Study]:
    """Yield the studies of the option `warm_start`: a study itself, or all studies of a storage. The call blocks.

    Raises:
        InvalidOptionError: If the source has no study.
    """
    each: Iterable[Any] = source if isinstance(source, list | tuple) else [source]
    for one in each:
        if isinstance(one, optuna.Study):
            yield one
            continue
        storage = _opened(one)
        names = optuna.get_all_study_names(storage)
        if not names:
            raise InvalidOptionError("`warm_start`: the storage has no study. Give a storage that a search has used.")
        for name in names:
            yield optuna.load_study(study_name=name, storage=storage)


def _opened(source: Any) -> BaseStorage:
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    file = name.partition(":///")[2].partition("?")[0] if name.startswith("sqlite") else name
    if file and "://" not in file and not pathlib.Path(file).exists():
        raise InvalidOptionError(
            f"`warm_start`: the file {file!r} does not exist. Give the storage of an earlier search."
        )
    return open_storage(source)
