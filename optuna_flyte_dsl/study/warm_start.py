"""Inserts the trials of earlier studies into the study of a search, where they fit its space."""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._text import counted, shown
from optuna_flyte_dsl.errors import ArgumentError, InvalidOptionError, RefusedPointError
from optuna_flyte_dsl.options import WarmStart
from optuna_flyte_dsl.space import conversion, domain
from optuna_flyte_dsl.space.annotations import listed
from optuna_flyte_dsl.space.directions import direction_names
from optuna_flyte_dsl.space.markers import Ordinal, Suggestion, same
from optuna_flyte_dsl.space.objective import Objective
from optuna_flyte_dsl.space.parameter_constraints import ParameterConstraint
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.study.attributes import (
    ARGUMENTS,
    FIXED_ARGUMENTS,
    IDENTITY,
    ORDINALS,
    PREFIX,
    WARM_START,
)
from optuna_flyte_dsl.study.feasibility import constraints_of
from optuna_flyte_dsl.study.resuming import identify
from optuna_flyte_dsl.study.storages import open_storage

_SHOWN_NUMBERS = 5


class _DoesNotFit(Exception):  # noqa: N818 - no user sees it
    """Raised, with the reason, for a trial that does not fit."""


class _Origin(NamedTuple):
    """What is asked of a study: each is read from the storage once, not for each trial."""

    name: str
    directions: list[StudyDirection]
    metric_names: list[str] | None
    attributes: Mapping[str, Any]

    @classmethod
    def of(cls, study: optuna.Study) -> _Origin:
        return cls(_name_of(study), study.directions, study.metric_names, study.user_attrs)


@dataclass(frozen=True)
class WarmStarter:
    """Inserts earlier trials into a study.

    Args:
        study: The study of the search.
        space: The space of the search.
        constraints: The constraints on the parameters of the search.
        fixed: The hash of the fixed arguments by which the search finds points that were tried already; `None` if it
            does not look for them.
    """

    study: optuna.Study
    objective: Objective
    space: SearchSpace
    constraints: Sequence[ParameterConstraint] = ()
    fixed: str | None = None

    def insert(self, source: WarmStart) -> int:
        """Insert the complete and pruned trials of earlier studies that fit. Return how many they are. The call blocks.

        A trial that is there already is not inserted again, whether it came by itself or through another study. The
        trials that do not fit are counted in a warning, by the reason.

        Raises:
            InvalidOptionError: If the source has no study.
        """
        identity, mine = identify(self.study), _Origin.of(self.study)
        marks = [trial.user_attrs.get(WARM_START) for trial in self.study.get_trials(deepcopy=False)]
        there = {_key(mark) for mark in marks if mark is not None}
        n_inserted, n_known = 0, 0
        misfits: dict[str, list[str]] = collections.defaultdict(list)
        for earlier in list(studies_of(source)):
            origin = _Origin.of(earlier)
            if origin.attributes.get(IDENTITY) == identity:
                continue
            for trial in earlier.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
                mark = trial.user_attrs.get(WARM_START) or _mark_of(earlier, trial)
                if _key(mark) in there:
                    n_known += 1
                    continue
                try:
                    fitting = self._fitted(trial, origin, mine)
                except _DoesNotFit as reason:
                    misfits[f"{origin.name}: {reason}"].append(str(trial.number))
                    continue
                fitting.user_attrs[WARM_START] = mark
                self.study.add_trial(fitting)
                there.add(_key(mark))
                n_inserted += 1
        self._report(n_inserted, n_known, misfits)
        return n_inserted

    def _fitted(self, trial: FrozenTrial, origin: _Origin, mine: _Origin) -> FrozenTrial:
        """Return a trial as one of the study of the search.

        Args:
            origin: The trial's study.
            mine: The study of the search.

        Raises:
            _DoesNotFit: If it is none.
        """
        if origin.directions != mine.directions:
            raise _DoesNotFit(
                f"its directions are {direction_names(origin.directions)}, and those of this search "
                f"{direction_names(mine.directions)}"
            )
        names = mine.metric_names
        if names is not None and origin.metric_names is not None and names != origin.metric_names:
            raise _DoesNotFit(
                f"its objectives are {listed(origin.metric_names)}, and those of this search {listed(names)}"
            )
        n_constraints = len(self.objective.returns.constraints)
        if trial.state is TrialState.COMPLETE and len(constraints_of(trial) or ()) != n_constraints:
            raise _DoesNotFit(
                f"no values of the {counted(n_constraints, 'constraint')} that this search has on its results"
            )
        params, distributions = trial.params, trial.distributions
        own = {name: each for name, each in trial.user_attrs.items() if not name.startswith(PREFIX)}
        if not self.objective.suggests_itself:
            self._check_arguments(origin.attributes.get(ARGUMENTS, {}))
            params = self._fitted_params(trial, origin.attributes.get(ORDINALS, {}))
            every = self.space.distributions()
            distributions = {name: every[name] for name in params}
            if self.fixed is not None:
                own[FIXED_ARGUMENTS] = self.fixed
        fitted = create_trial(
            state=trial.state,
            values=trial.values if trial.state is TrialState.COMPLETE else None,
            params=params,
            distributions=distributions,
            user_attrs=own,
            system_attrs={name: each for name, each in trial.system_attrs.items() if name.startswith("constraints")},
            intermediate_values=trial.intermediate_values,
        )
        fitted.datetime_start, fitted.datetime_complete = trial.datetime_start, trial.datetime_complete
        return fitted

    def _check_arguments(self, earlier: Mapping[str, Any]) -> None:
        """Check that arguments which the study of an earlier search has noted are those of this search."""
        fixed = self.space.fixed_values()
        for name, value in earlier.items():
            if name in fixed and not same(fixed[name], value):
                raise _DoesNotFit(f"run with {name}={shown(value)}, and this search has {shown(fixed[name])}")

    def _fitted_params(self, trial: FrozenTrial, ordinals: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        space, fixed = self.space, self.space.fixed_values()
        searched: dict[str, Any] = {}
        for name in trial.params:
            marker = space.get(name) or space.declared_marker(name)
            stored = _restored(marker, trial, name, ordinals.get(name))
            if name in space:
                searched[name] = stored
            elif name not in fixed:
                raise _DoesNotFit(f"this search has no parameter `{name}`")
            elif not same(fixed[name], _value_of(marker, stored)):
                raise _DoesNotFit(f"`{name}` is {shown(fixed[name])} in this search")
        try:
            active = space.active_in(searched)
        except ArgumentError as error:
            raise _DoesNotFit(str(error)) from error
        if missing := [name for name in space if name in active and name not in searched]:
            raise _DoesNotFit(f"no value for {listed(missing)}")
        fitted = {}
        for name in [name for name in space if name in active]:
            marker = space[name].stored
            if not domain.contains(marker, searched[name]):
                raise _DoesNotFit(f"`{name}` lies outside of {space[name]!r}")
            fitted[name] = conversion.convert(marker, searched[name])
        try:
            arguments = space.fill(fitted) if self.constraints else {}
        except RefusedPointError as error:
            raise _DoesNotFit(str(error)) from error
        for constraint in self.constraints:
            if constraint.value(arguments) > 0:
                raise _DoesNotFit(f"{constraint.name} does not allow them")
        return fitted

    def _report(self, n_inserted: int, n_known: int, misfits: Mapping[str, Sequence[str]]) -> None:
        known = f", and {n_known} were there already" if n_known else ""
        text = f"`{self.objective.name}` begins with {counted(n_inserted, 'earlier trial')}{known}."
        if not misfits:
            logger.info("%s", text)
            return
        reasons = [f"{_numbers(each)} of {reason}" for reason, each in misfits.items()]
        n_misfits = sum(map(len, misfits.values()))
        do_not_fit = "1 does not fit, and is" if n_misfits == 1 else f"{n_misfits} do not fit, and are"
        logger.warning("%s %s left out. %s.", text, do_not_fit, ". ".join(reasons))


def _mark_of(study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
    """Return the attribute that tells an inserted trial from all others."""
    begun = trial.datetime_start.isoformat() if trial.datetime_start is not None else None
    return {"study": study.study_name, "trial": trial.number, "begun": begun}


def _key(mark: Mapping[str, Any]) -> Hashable:
    return tuple(sorted(mark.items()))


def _name_of(study: optuna.Study) -> str:
    return "a study without a name" if study.study_name.startswith("no-name-") else study.study_name


def _value_of(marker: Suggestion | None, stored: Any) -> Any:
    """Return the value for which Optuna stores something."""
    with contextlib.suppress(ValueError):
        return marker.from_stored(stored) if marker is not None else stored
    return stored


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
    return f"Trial{'s' if len(trials) > 1 else ''} {', '.join(trials[:_SHOWN_NUMBERS])}{several}"


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
