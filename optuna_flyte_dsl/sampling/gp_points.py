"""`GPPoints`: the points of a GPSampler that a search has time for."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import math
import random
import threading
import time
from typing import Any, NamedTuple, NoReturn

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import GPSampler
from optuna.trial import FrozenTrial, TrialState

from optuna_flyte_dsl._compat.optuna import (
    expect_lengthscales,
    gp_knows_running_trials,
    known_trials,
    point_of,
    store_point,
    study_key,
)
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
from optuna_flyte_dsl.study.feasibility import stored_constraints

_QUICK_SEARCH = 3.0  # a search of fewer seconds starts no process, which takes 3 s
_FEW_POINTS = 0.1  # nor does one that has time for a smaller share of its points
_USUAL_COST = 0.3  # seconds of the first point, for each objective
_START_SECONDS = 3.0  # seconds of the start of the process
_PATIENCE = 3.0  # a point is not waited for longer than this many times its usual cost
_RUNNING_PER_RESULT = 8  # for every 8 running trials, a point may lack one result
_SLOW_ASKS = 4.0  # if asks come 4 times slower than points, one point is sampled ahead
# Optuna's own prior hardly bounds the lengthscales. With 10 to 40 results, the likelihood is often largest at ones that
# are far too long or far too short. One trial at a time soon shows that; many trials at once do not. Measured on the
# problems of benchmarks/quality.py, against Optuna's prior: with 64 trials at once, a spread of 0.5 finds better points
# for all five that have one objective, and with 16 neither better nor worse ones on the whole. With two objectives and
# 64 trials at once, it finds worse ones.
_LENGTHSCALE_SPREAD = 0.5
_ids = itertools.count()
FEWEST_RESULTS = 5
"""The number of results that a GPSampler needs."""

MANY_RUNNING = 12
"""With more running trials, a model has few results for each point that it proposes."""


class _Coming(NamedTuple):
    """A point that was asked for."""

    id: int
    future: concurrent.futures.Future[SampledPoint]
    key: tuple[Any, ...]  # the study and the space
    n_results: int  # which the point knows
    since: float  # the time at which it was asked for


class Patience:
    """Whether points are waited for. A search that ends is not to wait for one."""

    def __init__(self) -> None:
        self._end: concurrent.futures.Future[None] = concurrent.futures.Future()

    def end(self) -> None:
        """Wait for no point from now on. Any thread may call this."""
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # it has ended already
            self._end.set_result(None)

    def renew(self) -> None:
        """Wait for points again."""
        if self._end.done():
            self._end = concurrent.futures.Future()

    def wait(self, future: concurrent.futures.Future[SampledPoint], seconds: float) -> bool:
        """Wait for a point, at most some seconds. Return whether it is there."""
        both: list[concurrent.futures.Future[Any]] = [future, self._end]
        concurrent.futures.wait(both, seconds, concurrent.futures.FIRST_COMPLETED)
        return future.done()

    @property
    def has_ended(self) -> bool:
        """Whether `end` was called."""
        return self._end.done()

    def __reduce__(self) -> tuple[type[Patience], tuple[()]]:
        return Patience, ()  # a copy serves another search


class GPPoints:
    """Points that a GPSampler samples in another process.

    Where the budget allows it, a trial waits for its point, which knows all results. After each trial that was asked
    for, a point is sampled ahead. The next trial gets it if it lacks few results, or if there is no time to wait.

    Args:
        seed: The seed; `None` for new random numbers.
        budget: For how long slots may be idle.
        has_constraints: Whether Optuna 4 must be told that there are constraints.
    """

    def __init__(self, seed: int | None, budget: TimeBudget, *, has_constraints: bool) -> None:
        self.budget = budget
        self.patience: Patience = Patience()
        self._seed = random.SystemRandom().randrange(2**31) if seed is None else seed
        self._has_constraints = has_constraints
        self._has_sent_request = False
        self._last_cost: float | None = None
        self._ahead: collections.deque[_Coming] = collections.deque()  # for the next trials
        self._coming: dict[int, _Coming] = {}  # by the number of the trial that takes it
        self._searches = (next(_ids), next(_ids))  # with Optuna's prior, and with ours
        self._lock = threading.RLock()

    @property
    def _process(self) -> SamplerProcess:
        return sampler_process(is_background=self.budget.share is not None)

    def has_point(self, study: optuna.Study, trial: FrozenTrial, space: dict[str, BaseDistribution]) -> bool:
        """Return whether a trial can get a point, at once or while it waits for `take`."""
        if self.budget.share is None:
            return True
        with self._lock:
            has_time = self._has_time_to_wait(study)
            can_ask_anew = has_time and not self._process.is_busy
            n_running = len(known_trials(study, (TrialState.RUNNING,)))
            while self._ahead and self._n_lacking(self._ahead[0], study, space) > n_running:
                self._ahead.popleft().future.cancel()
            if not self._ahead:
                return can_ask_anew and self._is_worth_it(study)
            first = self._ahead[0]
            if not first.future.done():
                if time.monotonic() > first.since + pauses.sampler_patience:
                    self._give_up_process()
                if not has_time:
                    return False
            elif can_ask_anew and self._n_lacking(first, study, space) > n_running // _RUNNING_PER_RESULT:
                self._drop_ahead()  # the trial waits for a point that knows more
                return True
            self._coming[trial.number] = self._ahead.popleft()
            return True

    def take(
        self, study: optuna.Study, trial: FrozenTrial, space: dict[str, BaseDistribution]
    ) -> dict[str, Any] | None:
        """Return the parameters of a trial for which `has_point` was true. `None` if they were waited for in vain."""
        with self._lock:
            coming = self._coming.get(trial.number)
            if coming is None:
                rows = _rows(study, space, besides=trial)
                coming = self._coming[trial.number] = self._submit(study, trial.number, space, rows)
        has_limit = self.budget.share is not None
        seconds = _PATIENCE * self._expected_wait(study) if has_limit else pauses.sampler_patience
        with self.budget.spent():
            has_come = self.patience.wait(coming.future, seconds)
        with self._lock:
            if not has_come:
                self._coming.pop(trial.number, None)
                if has_limit:
                    self._ahead.appendleft(coming)
                elif not self.patience.has_ended:
                    self._give_up_process()
                return None
            sampled = coming.future.result()
            self._last_cost = sampled.seconds
        pairs = zip(space.items(), sampled.point, strict=True)
        params = {name: kind.to_external_repr(each) for (name, kind), each in pairs}
        store_point(study, trial, params)
        with self._lock:
            self._coming.pop(trial.number, None)  # its point is known from the study now
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
        with self._lock:
            if len(self._ahead) < self._most_ahead(study):
                rows = _rows(study, space, besides=trial)
                if space.keys() <= params.keys():
                    rows.append(Row(TrialState.RUNNING, None, _point(params, space), {}))
                self._ahead.append(self._submit(study, trial.number + 1 + len(self._ahead), space, rows))

    def give_back(self, number: int) -> None:
        """Note that a trial has ended. If it has not taken its point, as with enqueued parameters, the next one may."""
        with self._lock:
            coming = self._coming.pop(number, None)
            if coming is not None:
                self._ahead.appendleft(coming)

    def _n_lacking(self, coming: _Coming, study: optuna.Study, space: dict[str, BaseDistribution]) -> float:
        """Return how many results a point does not know."""
        if coming.key != _key(study, space):
            return math.inf
        return len(known_trials(study, (TrialState.COMPLETE,))) - coming.n_results

    def _most_ahead(self, study: optuna.Study) -> int:
        """Return how many points are sampled ahead at most."""
        n_lacking = len(known_trials(study, (TrialState.RUNNING,))) // _RUNNING_PER_RESULT
        if n_lacking == 0 and self._has_time_to_wait(study):
            return 0  # the next trial will wait for a point that knows the result of this one
        return 1 if self.budget.seconds_per_ask >= _SLOW_ASKS * self._cost(study) else 1 + n_lacking

    def _drop_ahead(self) -> None:
        while self._ahead:
            self._ahead.popleft().future.cancel()

    def _give_up_process(self) -> NoReturn:
        self._process.close()
        raise SamplerProcessError(f"it has sent no point for {pauses.sampler_patience:g} s")

    def forget(self) -> None:
        """Forget the points that no trial has got yet."""
        with self._lock:
            self._drop_ahead()
            self._coming.clear()

    def __getstate__(self) -> dict[str, Any]:
        # Another process has another clock, and no point that was asked for here.
        return {"seed": self._seed, "share": self.budget.share, "has_constraints": self._has_constraints}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["seed"], TimeBudget(state["share"]), has_constraints=state["has_constraints"])  # type: ignore[misc]

    def _submit(self, study: optuna.Study, number: int, space: dict[str, BaseDistribution], rows: list[Row]) -> _Coming:
        self._has_sent_request = True
        key = _key(study, space)
        n_running = len(known_trials(study, (TrialState.RUNNING,)))
        expects = n_running > MANY_RUNNING and len(study.directions) == 1
        seed = (self._seed + number) % 2**32
        request = SamplingRequest(
            next(_ids),
            functools.partial(make_gp, seed, has_constraints=self._has_constraints, expects_lengthscales=expects),
            # What a kept sampler knows depends on when the process has started: a search that repeats exactly has none.
            None if self.budget.share is None else self._searches[expects],
            study.directions,
            space_of_indices(space),
            rows,
            [each.id for each in (*self._ahead, *self._coming.values()) if each.key == key],
        )
        n_results = sum(row.state is TrialState.COMPLETE for row in rows)
        return _Coming(request.id, self._process.submit(request), key, n_results, time.monotonic())

    def _cost(self, study: optuna.Study) -> float:
        """Return how many seconds a point takes."""
        return _USUAL_COST * len(study.directions) if self._last_cost is None else self._last_cost

    def _expected_wait(self, study: optuna.Study) -> float:
        return self._cost(study) if self._process.is_ready else self._cost(study) + _START_SECONDS

    def _has_time_to_wait(self, study: optuna.Study) -> bool:
        # If trials are asked for faster than points are sampled, waiting brings no more points.
        return self.budget.seconds_per_ask >= self._cost(study) and self.budget.allows(self._expected_wait(study))

    def _is_worth_it(self, study: optuna.Study) -> bool:
        """Return whether the process is worth its start."""
        if self._has_sent_request:
            return True
        cost = _USUAL_COST * len(study.directions)
        share = self.budget.affordable(cost)
        if gp_knows_running_trials():
            share = max(share, self.budget.seconds_per_ask / cost)
        return self.budget.elapsed >= _QUICK_SEARCH and share >= _FEW_POINTS


def make_gp(seed: int, *, has_constraints: bool, expects_lengthscales: bool) -> GPSampler:
    """Make the sampler of a request, in the process that samples.

    Args:
        expects_lengthscales: Whether its prior bounds the lengthscales more than Optuna's.
    """
    with without_optuna_warnings():
        sampler = GPSampler(
            seed=seed,
            n_startup_trials=FEWEST_RESULTS,
            constraints_func=_never_called if has_constraints else None,
            warn_independent_sampling=False,
        )
    if expects_lengthscales:
        expect_lengthscales(sampler, _usual_lengthscale, _LENGTHSCALE_SPREAD)
    return sampler


def _usual_lengthscale(n_parameters: int) -> float:
    """Return half of the usual distance of two random points in a cube whose edges have the length 1.

    The mean of the squared distance is 1/6 for each parameter.
    """
    return 0.5 * math.sqrt(n_parameters / 6)


def _never_called(_: FrozenTrial) -> NoReturn:
    """Tell a sampler of Optuna 4 that there are constraints. Their values are in the trials already."""
    raise AssertionError


def _key(study: optuna.Study, space: dict[str, BaseDistribution]) -> tuple[Any, ...]:
    return study_key(study), tuple(space.items())


def _point(params: dict[str, Any], space: dict[str, BaseDistribution]) -> tuple[float, ...]:
    return tuple(kind.to_internal_repr(params[name]) for name, kind in space.items())


def _rows(study: optuna.Study, space: dict[str, BaseDistribution], *, besides: FrozenTrial) -> list[Row]:
    """Return what a GPSampler learns from the other trials."""
    rows = []
    for trial in known_trials(study, (TrialState.COMPLETE, TrialState.RUNNING)):
        params = point_of(trial)
        if space.keys() <= params.keys() and trial.number != besides.number:
            values: list[float] | None = trial.values
            # JSON may have changed a choice of a running trial that is not suggested yet.
            with contextlib.suppress(ValueError) if trial.state is TrialState.RUNNING else contextlib.nullcontext():
                point = _point(params, space)
                rows.append(Row(trial.state, values and list(values), point, stored_constraints(trial)))
    return rows
