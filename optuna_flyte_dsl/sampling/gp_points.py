"""`GPPoints`: the points of a GPSampler that a search has time for."""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import itertools
import random
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import GPSampler
from optuna.trial import FrozenTrial, TrialState

from optuna_flyte_dsl._compat.optuna import gp_knows_running_trials, known_trials, point_of, store_point, study_key
from optuna_flyte_dsl._optuna_warnings import without_optuna_warnings
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl.sampling.sampler_process import (
    Row,
    SampledPoint,
    SamplerProcess,
    SamplerProcessError,
    SamplingRequest,
    sampler_process,
    space_of_indices,
)
from optuna_flyte_dsl.sampling.time_budget import TimeBudget

_QUICK_SEARCH = 3.0  # a search of fewer seconds starts no process, which takes 3 s
_FEW_POINTS = 0.1  # nor does one that has time for a smaller share of its points
_USUAL_COST = 0.3  # seconds of the first point, for each objective
_START = 3.0  # seconds of the start of the process
_PATIENCE = 3.0  # a point is not waited for longer than this many times its usual cost
_FRESH = 8  # a point may lack one result for each so many running trials
_RARE = 4.0  # if trials are asked for so many times less often than points can be sampled, one point ahead suffices
_ids = itertools.count()
FEWEST_RESULTS = 5
"""The number of results that a GPSampler needs."""


class _Coming(NamedTuple):
    """A point that was asked for."""

    id: int
    future: concurrent.futures.Future[SampledPoint]
    key: tuple[Any, ...]  # the study and the space
    n_results: int  # which the point knows


class GPPoints:
    """Points that a GPSampler samples in another process.

    Where the budget allows it, a trial waits for its point, which knows all results. After each trial that was asked
    for, a point is sampled ahead. The next trial gets it if it is fresh enough, or if there is no time to wait.

    Args:
        seed: The seed; `None` for new random numbers.
        budget: For how long slots may be idle.
        has_constraints: Whether Optuna 4 must be told that there are constraints.
    """

    def __init__(self, seed: int | None, budget: TimeBudget, *, has_constraints: bool) -> None:
        self.budget = budget
        self._seed = random.SystemRandom().randrange(2**31) if seed is None else seed
        self._has_constraints = has_constraints
        self._is_begun = False
        self._last_cost: float | None = None
        self._ahead: collections.deque[_Coming] = collections.deque()  # for the next trials
        self._coming: dict[int, _Coming] = {}  # by the number of the trial that takes it

    @property
    def _process(self) -> SamplerProcess:
        return sampler_process(is_background=self.budget.share is not None)

    def has_point(self, study: optuna.Study, trial: FrozenTrial, space: dict[str, BaseDistribution]) -> bool:
        """Return whether a trial can get a point, at once or while it waits for `take`."""
        if self.budget.share is None:
            return True
        has_time = self._has_time_to_wait(study)
        while self._ahead:
            if not self._ahead[0].future.done() and not has_time:
                return False
            ahead = self._ahead.popleft()
            n_new = len(known_trials(study, (TrialState.COMPLETE,))) - ahead.n_results
            is_fresh = n_new <= len(known_trials(study, (TrialState.RUNNING,))) // _FRESH
            if ahead.key == _key(study, space) and (is_fresh or not has_time):
                self._coming[trial.number] = ahead
                return True
        return has_time and self._is_worth_it(study) and not self._process.is_busy

    def take(
        self, study: optuna.Study, trial: FrozenTrial, space: dict[str, BaseDistribution]
    ) -> dict[str, Any] | None:
        """Return the parameters of a trial for which `has_point` was true. `None` if they were waited for in vain."""
        coming = self._coming.get(trial.number)
        if coming is None:
            coming = self._coming[trial.number] = self._submit(study, trial.number, space, _rows(study, space))
        has_limit = self.budget.share is not None
        patience = _PATIENCE * self._wait_for_cost(study) if has_limit else pauses.sampler_patience
        try:
            with self.budget.spent():
                sampled = coming.future.result(patience)
        except TimeoutError:
            if not has_limit:
                raise SamplerProcessError(f"it has sent no point for {patience:g} s") from None
            self._ahead.append(coming)
            return None
        finally:
            self._coming.pop(trial.number, None)
        self._last_cost = sampled.seconds
        pairs = zip(space.items(), sampled.point, strict=True)
        params = {name: kind.to_external_repr(each) for (name, kind), each in pairs}
        store_point(study, trial, params)
        return params

    def ask_ahead(
        self, study: optuna.Study, trial: FrozenTrial, space: dict[str, BaseDistribution], params: dict[str, Any]
    ) -> None:
        """Begin to sample a point for one of the next trials.

        Args:
            trial: The trial that was asked for now.
            params: Its parameters, as far as they are known.
        """
        if self.budget.share is None or not gp_knows_running_trials() or not self._is_worth_it(study):
            return
        if len(self._ahead) < self._most_ahead(study):
            rows = _rows(study, space)
            if space.keys() <= params.keys():
                rows.append(Row(TrialState.RUNNING, None, _point(params, space), {}))
            self._ahead.append(self._submit(study, trial.number + 1 + len(self._ahead), space, rows))

    def _most_ahead(self, study: optuna.Study) -> int:
        """Return how many points are sampled ahead at most."""
        n_lacking = len(known_trials(study, (TrialState.RUNNING,))) // _FRESH
        if n_lacking == 0 and self._has_time_to_wait(study):
            return 0  # the next trial will wait for a point that knows the result of this one
        return 1 if self.budget.seconds_per_ask >= _RARE * self._cost(study) else 1 + n_lacking

    def forget(self) -> None:
        """Forget the points that no trial has got yet."""
        self._ahead.clear()
        self._coming.clear()

    def __getstate__(self) -> dict[str, Any]:
        # Another process has another clock, and no point that was asked for here.
        return {
            **vars(self),
            "budget": TimeBudget(self.budget.share),
            "_is_begun": False,
            "_ahead": collections.deque(),
            "_coming": {},
        }

    def _submit(self, study: optuna.Study, number: int, space: dict[str, BaseDistribution], rows: list[Row]) -> _Coming:
        self._is_begun = True
        key = _key(study, space)
        open_ids = [each.id for each in (*self._ahead, *list(self._coming.values())) if each.key == key]
        make = functools.partial(make_gp, (self._seed + number) % 2**32, has_constraints=self._has_constraints)
        request = SamplingRequest(next(_ids), make, study.directions, space_of_indices(space), rows, open_ids)
        future = self._process.submit(request)
        return _Coming(request.id, future, key, sum(row.state is TrialState.COMPLETE for row in rows))

    def _cost(self, study: optuna.Study) -> float:
        """Return how many seconds a point takes."""
        return _USUAL_COST * len(study.directions) if self._last_cost is None else self._last_cost

    def _wait_for_cost(self, study: optuna.Study) -> float:
        return self._cost(study) if self._process.is_ready else self._cost(study) + _START

    def _has_time_to_wait(self, study: optuna.Study) -> bool:
        # If trials are asked for faster than points are sampled, waiting brings no more points.
        return self.budget.seconds_per_ask >= self._cost(study) and self.budget.allows(self._wait_for_cost(study))

    def _is_worth_it(self, study: optuna.Study) -> bool:
        """Return whether the process is worth its start."""
        if self._is_begun:
            return True
        cost = _USUAL_COST * len(study.directions)
        share = self.budget.affordable(cost)
        if gp_knows_running_trials():
            share = max(share, self.budget.seconds_per_ask / cost)
        elif len(known_trials(study, (TrialState.RUNNING,))) > 1:
            return False
        return self.budget.elapsed >= _QUICK_SEARCH and share >= _FEW_POINTS


def make_gp(seed: int, *, has_constraints: bool) -> GPSampler:
    """Make the sampler of a request, in the process that samples."""
    with without_optuna_warnings():
        return GPSampler(
            seed=seed,
            n_startup_trials=FEWEST_RESULTS,
            constraints_func=_never_called if has_constraints else None,
            warn_independent_sampling=False,
        )


def _never_called(_: FrozenTrial) -> NoReturn:
    """Tell a sampler of Optuna 4 that there are constraints. Their values are in the trials already."""
    raise AssertionError


def _key(study: optuna.Study, space: dict[str, BaseDistribution]) -> tuple[Any, ...]:
    return study_key(study), tuple(space.items())


def _point(params: dict[str, Any], space: dict[str, BaseDistribution]) -> tuple[float, ...]:
    return tuple(kind.to_internal_repr(params[name]) for name, kind in space.items())


def _rows(study: optuna.Study, space: dict[str, BaseDistribution]) -> list[Row]:
    """Return what a GPSampler learns from."""
    rows = []
    for trial in known_trials(study, (TrialState.COMPLETE, TrialState.RUNNING)):
        params = point_of(trial)
        if space.keys() <= params.keys():
            constraints = {name: value for name, value in trial.system_attrs.items() if name.startswith("constraints")}
            values: Sequence[float] | None = trial.values
            rows.append(Row(trial.state, None if values is None else list(values), _point(params, space), constraints))
    return rows
