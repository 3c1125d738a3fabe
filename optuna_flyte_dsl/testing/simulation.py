"""`simulate`: runs a search on a virtual clock, with durations, outcomes and faults that the caller makes up."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import heapq
import inspect
import math
import numbers
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast, get_args

import optuna
from optuna.trial import FrozenTrial, TrialState

from optuna_flyte_dsl._run_sync import wait_for
from optuna_flyte_dsl._text import did_you_mean, shown
from optuna_flyte_dsl.engines.engine_choice import host_engine
from optuna_flyte_dsl.engines.functions import FunctionRunner
from optuna_flyte_dsl.errors import InvalidOptionError
from optuna_flyte_dsl.search.runner import Runner, TrialRun
from optuna_flyte_dsl.search_assembly import Assembly
from optuna_flyte_dsl.session import Session
from optuna_flyte_dsl.session_attributes import SessionAttributes
from optuna_flyte_dsl.space.annotations import listed
from optuna_flyte_dsl.space.objective import TRIAL, Kind, Objective
from optuna_flyte_dsl.study.opening import StudySource
from optuna_flyte_dsl.testing.faults import Fault, Faults
from optuna_flyte_dsl.testing.in_memory import in_memory
from optuna_flyte_dsl.testing.simulation_result import EPOCH, SimulatedRun, Simulation
from optuna_flyte_dsl.testing.virtual_time import InlineThreads, VirtualTimeLoop

Seconds: TypeAlias = float | datetime.timedelta


def simulate(
    search: SessionAttributes,
    /,
    *args: Any,
    durations: Seconds | Callable[..., Seconds] = 1.0,
    outcomes: Callable[..., Any] | None = None,
    faults: Faults | Mapping[int, str] | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> Simulation:
    """Run a search on a virtual clock.

    The same call gives the same result, unless the sampler is an object that was made without a seed.

    The search is the real one: its sampler, pruner, retries, limits, delay and callbacks work as always. Only the
    trials are made up, and no time passes while they run. The study is in memory.

    Args:
        search: An objective under `@optimize`, or an `Optimizer`.
        *args: The positional arguments of the objective.
        durations: How long a trial lasts: seconds, a timedelta, or a function that returns one of them.
        outcomes: A function, sync or async, that returns what the objective would return, instead of the objective
            itself. An error that it raises is one of the trial. A generator function yields intermediate values, which
            are reported at equal distances of the trial's duration, as steps 0, 1 and so on; what it yields last is the
            value.
        faults: What goes wrong: `Faults(crash=0.05)`, or the faults of first attempts by the number of the trial.
        seed: The seed of durations and faults, and of the sampler if no option gives one.
        **kwargs: The keyword arguments of the objective, and options, as in `search.plan(...)`.

    An argument of the objective that is called `durations`, `outcomes`, `faults` or `seed` is given by position. A
    search that its failures end raises `TooManyFailuresError` here too.

    The functions `durations` and `outcomes` take arguments of the objective by their names, and besides `number`, the
    trial's number; `random`, a `random.Random` of the trial; and `trial`, if the objective takes it.

    Raises:
        InvalidOptionError: If a function takes another argument, or a trial would hang for ever.
        ArgumentError: If the arguments do not fit the objective.

    >>> from optuna_flyte_dsl import Float, Minimize, optimize
    >>> @optimize(n_trials=1000, concurrency=50)
    ... def train(lr: Float(1e-5, 1e-1, log=True)) -> Minimize: ...
    >>> outcomes = lambda lr: (lr - 0.01) ** 2
    >>> simulation = simulate(train, durations=3600, outcomes=outcomes, sampler=optuna.samplers.RandomSampler)
    >>> print(simulation)
    1000 trials (1000 COMPLETE) in 20:00:00, with 100% of 50 slots in use
    """
    if not isinstance(search, SessionAttributes):
        raise InvalidOptionError(
            f"`simulate` takes an objective under `@optimize`, or an `Optimizer`, but got {shown(search)}. Write "
            "`simulate(optimize(objective), ...)`."
        )
    arguments, options = search._separate(kwargs)
    changed = search.with_options(**options)
    session = in_memory(changed._session, seed, time_share=None, executor="thread", gpus=None)
    if (
        session.objective.kind is Kind.ASYNC_FUNCTION
    ):  # made-up trials do not block the event loop, which is not watched
        session = Session(dataclasses.replace(session.objective, kind=Kind.FUNCTION), session.options)
    trials = _MadeUp(durations, outcomes, faults or Faults(), seed, session)
    callbacks = [trials.note_told, *(session.options.callbacks or ())]
    session = Session(session.objective, dataclasses.replace(session.options, callbacks=callbacks))
    call = session.prepare(args, arguments)

    async def run() -> optuna.Study:
        source = StudySource(session.options, session.objective)
        threads = InlineThreads()
        parts = Assembly(session.options, session.objective, source, call, threads, make_runner=trials.make_runner)
        return await parts.run_here()

    try:
        study = wait_for(run(), VirtualTimeLoop)
    except _Broken as broken:
        raise broken.error from None
    makespan = max((run.end for run in trials.runs), default=0.0)
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    schedule = tuple(dataclasses.replace(run, state=states[run.trial]) for run in sorted(trials.runs, key=_by_start))
    timed = _with_virtual_times(study, schedule, trials.told)
    return Simulation(timed, schedule, session.options.concurrency, makespan)


def _seconds(given: object) -> float:
    """Return a duration in seconds."""
    seconds = math.nan
    if isinstance(given, datetime.timedelta):
        seconds = given.total_seconds()
    elif isinstance(given, numbers.Real) and not isinstance(given, bool):
        seconds = float(given)
    if not 0 <= seconds < math.inf:
        raise InvalidOptionError(f"`durations` must give seconds of 0 or more, or a timedelta, but got {shown(given)}.")
    return seconds


class _Broken(BaseException):
    """Ends a simulation: what the user has made up raises an error, which is none of a trial."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _by_start(run: SimulatedRun) -> tuple[float, int, int]:
    return run.start, run.trial, run.attempt


def _with_virtual_times(
    study: optuna.Study, schedule: Sequence[SimulatedRun], told: Mapping[int, float]
) -> optuna.Study:
    """Return a copy of a study, whose trials have the times of the schedule.

    A trial that was not run begins and ends when it was told. Earlier trials were there before the search began.

    Args:
        told: When each trial was told, in seconds, by its number.
    """
    begun: dict[int, float] = {}
    for run in schedule:
        begun.setdefault(run.trial, run.start)
    copied = optuna.create_study(
        study_name=study.study_name, directions=study.directions, sampler=study.sampler, pruner=study.pruner
    )
    for trial in study.get_trials():
        ended = told.get(trial.number, 0.0)
        trial.datetime_start = EPOCH + datetime.timedelta(seconds=begun.get(trial.number, ended))
        trial.datetime_complete = EPOCH + datetime.timedelta(seconds=ended)
        copied.add_trial(trial)
    for name, value in study.user_attrs.items():
        copied.set_user_attr(name, value)
    if study.metric_names is not None:
        copied.set_metric_names(study.metric_names)
    return copied


class _MadeUp:
    """The made-up durations, outcomes and faults of a search's trials, and the runs that they gave."""

    def __init__(
        self,
        durations: Seconds | Callable[..., Seconds],
        outcomes: Callable[..., Any] | None,
        faults: Faults | Mapping[int, str],
        seed: int,
        session: Session,
    ) -> None:
        self.runs: list[SimulatedRun] = []
        self.told: dict[int, float] = {}  # when each trial was told, by its number
        self.durations, self.outcomes, self.faults, self.seed = durations, outcomes, faults, seed
        self.objective = session.objective
        self.has_limit = any(limit is not None for limit in session.options.timeouts)
        self._free = list(range(session.options.concurrency))
        if outcomes is not None and not callable(outcomes):
            raise InvalidOptionError(f"`outcomes` must be a function of the arguments, but got {shown(outcomes)}.")
        if not isinstance(faults, Faults | Mapping):
            raise InvalidOptionError(
                f"`faults` must be `Faults(crash=0.05)`, or a dict such as `{{3: 'hang'}}`, but got {shown(faults)}."
            )
        for name, function in (("durations", durations), ("outcomes", outcomes)):
            if callable(function):
                _check_names(name, function, self.objective)
        if not callable(durations):
            _seconds(durations)
        if isinstance(faults, Mapping):
            for number, fault in faults.items():
                if not isinstance(number, int):
                    raise InvalidOptionError(
                        f"`faults`: the key of a fault must be the number of a trial, but got {shown(number)}. For the "
                        "probabilities of faults, write `Faults(crash=0.1)`."
                    )
                if fault not in get_args(Fault):
                    raise InvalidOptionError(
                        f"`faults`: the fault of trial {number} must be one of {listed(get_args(Fault))}, but got "
                        f"{shown(fault)}.{did_you_mean(str(fault), get_args(Fault))}"
                    )
        hangs = "hang" in faults.values() if isinstance(faults, Mapping) else faults.hang > 0
        if hangs and not self.has_limit:
            raise InvalidOptionError(
                "`faults` has trials that hang, and the search has no limit of time, so that it would never end. Give "
                "`trial_timeout`, as the real search needs it too."
            )

    def make_runner(self, objective: Objective) -> Runner:
        """Return the runner of the search."""
        return _SimulatedRunner(self, objective)

    def note_told(self, _: optuna.Study, trial: FrozenTrial) -> None:
        """Note when a trial is told: a callback of the search."""
        self.told[trial.number] = asyncio.get_running_loop().time()

    def take_slot(self) -> int:
        """Return the first slot that is free."""
        return heapq.heappop(self._free)

    def give_back(self, slot: int) -> None:
        """Free a slot."""
        heapq.heappush(self._free, slot)


class _SimulatedRunner:
    """Runs made-up trials in virtual time."""

    def __init__(self, made_up: _MadeUp, objective: Objective) -> None:
        self._made_up = made_up
        self._objective = objective
        self._real: Runner | None = None

    async def run(self, run: TrialRun) -> Any:
        loop = asyncio.get_running_loop()
        number = run.trial.number
        generator = random.Random(f"{self._made_up.seed} {number} {run.attempt}")  # noqa: S311 - no secret is drawn
        fault = self._fault(number, run.attempt, generator)
        slot, start = self._made_up.take_slot(), loop.time()
        run.begin()
        try:
            return await self._outcome(run, fault, generator)
        finally:
            self._made_up.give_back(slot)
            self._made_up.runs.append(
                SimulatedRun(number, run.attempt, slot, start, loop.time(), fault, TrialState.RUNNING)
            )

    def _fault(self, number: int, attempt: int, generator: random.Random) -> Fault | None:
        faults = self._made_up.faults
        if isinstance(faults, Faults):
            return faults.drawn(generator)
        return cast("Fault | None", faults.get(number)) if attempt == 0 else None

    async def _outcome(self, run: TrialRun, fault: Fault | None, generator: random.Random) -> Any:
        given = {
            "number": run.trial.number,
            "random": generator,
            **self._objective.call_arguments(run.arguments, run.trial),
        }
        try:
            duration = self._duration(given, fault)
        except Exception as error:
            raise _Broken(error) from error
        if fault == "hang":
            await asyncio.get_running_loop().create_future()
        if fault == "crash":
            await asyncio.sleep(duration * generator.random())
            raise RuntimeError("A simulated crash.")
        returned = await self._returned(run, given)
        if isinstance(returned, Iterator):
            returned = await self._reported(run, list(returned), duration)
        else:
            await asyncio.sleep(duration)
        if fault != "nan":
            return returned
        return tuple(math.nan for _ in returned) if isinstance(returned, tuple | list) else math.nan

    def _duration(self, given: Mapping[str, Any], fault: Fault | None) -> float:
        seconds, faults = self._made_up.durations, self._made_up.faults
        seconds = _call(seconds, given) if callable(seconds) else seconds
        duration = _seconds(seconds)
        if fault != "straggler":
            return duration
        return duration * (faults.slowdown if isinstance(faults, Faults) else Faults().slowdown)

    async def _returned(self, run: TrialRun, given: Mapping[str, Any]) -> Any:
        """Return what the trial returns, or an iterator of what it reports."""
        if self._made_up.outcomes is not None or self._objective.kind is not Kind.TASK:
            if self._made_up.outcomes is not None:
                returned = _call(self._made_up.outcomes, given)
            else:
                returned = self._objective.target(**self._objective.call_arguments(run.arguments, run.trial))
            while inspect.isawaitable(returned):
                returned = await returned
            return returned
        if self._real is None:
            engine = host_engine(self._objective.target)
            self._real = (FunctionRunner if engine is None else engine.make_local_runner)(self._objective)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        with loop.held():
            return await self._real.run(run)

    async def _reported(self, run: TrialRun, values: Sequence[Any], duration: float) -> Any:
        error = None
        if not values:
            error = "`outcomes` yielded no value. Yield at least the value of the trial."
        elif not self._objective.takes_trial:
            error = (
                f"`outcomes` yields intermediate values, but `{self._objective.name}` cannot report: it does not take "
                "`trial`. Return the value instead."
            )
        if error is not None:
            raise _Broken(InvalidOptionError(error))
        for step, value in enumerate(values):
            await asyncio.sleep(duration / len(values))
            run.trial.report(value, step)
            if step < len(values) - 1 and run.trial.should_prune():
                raise optuna.TrialPruned
        return values[-1]

    async def close(self) -> None:
        if self._real is not None:
            await self._real.close()


def _check_names(name: str, function: Callable[..., Any], objective: Objective) -> None:
    known = ["number", "random", *([TRIAL] if objective.takes_trial else [])]
    parameters = objective.space.parameter_names
    if parameters is None:
        return
    known += parameters
    for parameter in inspect.signature(function).parameters.values():
        is_needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if is_needed and parameter.name not in known:
            raise InvalidOptionError(
                f"`{name}` takes `{parameter.name}`, which is no argument of `{objective.name}`, and neither `number` "
                f"nor `random`; there are {listed(known)}.{did_you_mean(parameter.name, known)}"
            )


def _call(function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Call a function with those of some arguments that it takes."""
    parameters = inspect.signature(function).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return function(**given)
    return function(**{each.name: given[each.name] for each in parameters if each.name in given})
