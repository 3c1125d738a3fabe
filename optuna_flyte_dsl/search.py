"""The search loop: ask, run, tell, inside the limits.

It knows asyncio and Optuna only. Trials are run by a `Runner` that it is given. Trials are asked and told in one thread
of their own, in order, and callbacks run there, so that none of it ever blocks the event loop.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import copy
import functools
import math
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
import wrapt
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_flyte_dsl.errors import ClusterError, ObjectiveValueError
from optuna_flyte_dsl.log import logger
from optuna_flyte_dsl.objective import Objective
from optuna_flyte_dsl.space import SearchSpace
from optuna_flyte_dsl.threads import Threads, insist

ERROR_ATTRIBUTE = "optuna_flyte_dsl:error"
"""The user attribute of a failed trial that holds the reason, in at most 2,000 characters."""

LOST_ATTRIBUTE = "optuna_flyte_dsl:lost"
"""The user attribute of a trial that has failed because its process ended; where another goes on, it does not count."""

_REASON_LIMIT = 2_000
_CLOSING_PAUSES = (0.0, 0.1, 0.5, 2.0)
"""Seconds before each attempt to tell a trial when the search ends in an error."""

_EXIT_PATIENCE = 10.0
"""Seconds that the interpreter's exit waits for a search to tell its trials."""

_ENDING = (ClusterError, ObjectiveValueError)
"""Errors of a trial that the next one would meet too."""

Observer = Callable[[optuna.Study, FrozenTrial], Any]


class Runner(Protocol):
    """Runs the objective of one trial, wherever that is."""

    async def run(self, trial: Trial, arguments: Mapping[str, Any]) -> Any:
        """Run one trial.

        Args:
            trial: The trial; objectives of some kinds take it.
            arguments: The objective's keyword arguments.

        Returns:
            What the objective returned. Its error is raised as it is. Cancelling gives up the trial.
        """

    async def close(self) -> None:
        """Free what the runner holds. Called once, after the last trial."""


@dataclass(frozen=True)
class Limits:
    """How much is run, and how much of it at once.

    Args:
        n_trials: How many trials are asked for.
        concurrency: How many of them run at the same time, at most.
        delay: Seconds between the starts of two trials, at least.
    """

    n_trials: int
    concurrency: int
    delay: float = 0.0


@dataclass(slots=True)
class _Outcome:
    """How one run ended: with `values`, or in a `state` that has none, for a `reason`."""

    state: TrialState
    values: tuple[float, ...] | None = None
    reason: str | None = None
    fatal: BaseException | None = None


class Search:
    """One search: it asks, runs and tells trials until a limit is reached.

    Args:
        study: Where trials are asked and told.
        objective: What judges a returned value.
        space: Makes a trial's arguments.
        runner: Runs the trials.
        limits: How much, and how much at once.
        observer: Called as a callback is, and before them; it must be quick.
        callbacks: Optuna's callbacks, called with the study and each finished trial. An error in one ends the search.
        initial_points: Parameters of the first trials, by name. A point that the study has already is left out.
        resumed: Trials that an earlier process has asked for and not told: run first, with the parameters they have.
        commit: Makes last what was told before, where the study is kept elsewhere; awaited after each trial.
        thread: The one thread in which the study is used.
    """

    def __init__(
        self,
        study: optuna.Study,
        objective: Objective,
        space: SearchSpace,
        runner: Runner,
        limits: Limits,
        *,
        observer: Observer | None = None,
        callbacks: Sequence[Observer] = (),
        initial_points: Sequence[Mapping[str, Any]] = (),
        resumed: Sequence[FrozenTrial] = (),
        commit: Callable[[], Awaitable[None]] | None = None,
        thread: Threads,
    ) -> None:
        self._study = _view(study, self._stop, self._note_asked)
        self._sampler = study.sampler
        self._objective = objective
        self._space = space
        self._runner = runner
        self._limits = limits
        self._observer = observer
        self._callbacks = tuple(callbacks)
        self._initial_points = tuple(initial_points)
        self._resumed = list(reversed(resumed))
        self._commit = commit
        self._thread = thread
        self._n_objectives = len(study.directions)
        self._quick: bool | None = None  # whether the study may be used in the event loop; the first trial tells
        self._asked: int | None = None  # the trial that an ask has stored and not returned yet
        self._open: dict[int, Trial] = {}  # asked and not told
        self._untold: dict[int, _Outcome] = {}  # of those, what a storage has refused
        self._claimed = 0
        self._stopped = False
        self._suspended = False
        self._lost = False
        self._tasks: set[asyncio.Task[BaseException | None]] = set()  # one for each trial in flight
        self._next_start = float("-inf")

    async def run(self) -> None:
        """Run the search to its end.

        Whatever happens, every trial that was asked for is told before this returns or raises.

        Raises:
            ObjectiveValueError: If the objective returned what no study can take.
            BaseException: What ended the search: a callback's error, the storage's, a cancellation.
        """
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._wake = asyncio.Event()  # set when the search stops: a trial that waits out a delay need not
        self._pace = asyncio.Lock()
        self._over: asyncio.Future[None] = self._loop.create_future()
        with _ToldAtExit(self._loop, self._close_at_last):
            try:
                await self._thread.run(self._enqueue)
                self._add_trial()
                await self._over
            except GeneratorExit:  # the loop is gone: nothing can be awaited any more
                raise
            except BaseException as error:
                await insist(functools.partial(self._abandon, error))
                raise
            finally:
                self._close_at_last()

    def suspend(self) -> None:
        """Let the trials that run when the search is cancelled stay RUNNING: another process will go on with them."""
        self._suspended = True

    def mark_lost(self) -> None:
        """Note on the trials that run when the search is cancelled that their process has ended, not they."""
        self._lost = True

    def _wants_more(self) -> bool:
        return not self._stopped and self._claimed < self._limits.n_trials

    def _add_trial(self) -> None:
        # A task and a context of its own for each trial: what an objective sets there does not reach the next one.
        self._claimed += 1
        task = self._loop.create_task(self._run_trial(), context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._trial_done)

    def _trial_done(self, task: asyncio.Task[BaseException | None]) -> None:
        self._tasks.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.result()
        if self._over.done():
            return
        if error is not None:
            self._over.set_exception(error)
        elif self._wants_more():
            self._add_trial()
        elif not self._tasks:
            self._over.set_result(None)

    async def _run_trial(self) -> BaseException | None:
        """Run one trial, and return what must end the search: asyncio lets some errors out of a task at once."""
        try:
            if self._limits.delay:
                await self._keep_pace()
            started = self._ask() if self._quick else await self._thread.run(self._ask)
            if started is None:
                return None
            if len(self._tasks) < self._limits.concurrency and self._wants_more():
                self._add_trial()
            number, trial, arguments = started
            try:
                outcome = self._judge(await self._runner.run(trial, arguments))
            except asyncio.CancelledError as cancelled:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                outcome = self._judge_error(cancelled)  # the objective's own doing
            except BaseException as error:
                if self._is_closed_by(error):
                    raise
                outcome = self._judge_error(error)
            if self._quick:
                self._tell(number, trial, outcome)
            else:
                await self._thread.run(self._tell, number, trial, outcome)
            if self._commit is not None:
                await self._commit()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if self._is_closed_by(error):
                raise
            return error
        return None

    def _is_closed_by(self, error: BaseException) -> bool:
        """Tell whether an error closes the coroutine that runs, whose loop is gone: an objective may raise it too."""
        return isinstance(error, GeneratorExit) and asyncio.current_task(self._loop) is None

    async def _keep_pace(self) -> None:
        async with self._pace:
            await self._wait_until(self._next_start)
            self._next_start = self._loop.time() + self._limits.delay

    async def _wait_until(self, moment: float) -> None:
        try:
            async with asyncio.timeout_at(max(moment, self._loop.time())):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _judge(self, returned: Any) -> _Outcome:
        try:
            values = self._objective.values(returned, self._n_objectives)
        except ObjectiveValueError as wrong:
            return _Outcome(TrialState.FAIL, reason=_reason(wrong), fatal=wrong)
        if any(map(math.isnan, values)):
            return _Outcome(TrialState.FAIL, reason=f"The objective returned NaN: {returned!r}")
        return _Outcome(TrialState.COMPLETE, values)

    def _judge_error(self, error: BaseException) -> _Outcome:
        if isinstance(error, optuna.TrialPruned):
            return _Outcome(TrialState.PRUNED)
        if isinstance(error, Exception | asyncio.CancelledError) and not isinstance(error, _ENDING):
            logger.debug("A trial of `%s` failed.", self._objective.name, exc_info=error)
            return _Outcome(TrialState.FAIL, reason=_reason(error))
        return _Outcome(TrialState.FAIL, reason=_reason(error), fatal=error)

    async def _abandon(self, error: BaseException) -> None:
        """Give up all running trials, and tell those that were asked for."""
        self._stopped = True
        self._over.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self._suspended:
            await self._thread.run(self._close_open, _why(error))

    def _close_at_last(self) -> None:
        """Tell what is open still, in this thread: a second interrupt has broken off the closing, or the loop."""
        if self._open and not self._suspended:
            self._stopped = True
            self._close_open("The search was interrupted while this trial ran.")

    def _stop(self) -> None:
        self._stopped = True
        self._loop.call_soon_threadsafe(self._wake.set)

    # What follows runs in the study's thread, or in the event loop where `_quick`.

    def _enqueue(self) -> None:
        for point in self._initial_points:
            self._study.enqueue_trial(dict(point), skip_if_exists=True)

    def _note_asked(self, number: int) -> None:
        self._asked = number

    def _ask(self) -> tuple[int, Trial, dict[str, Any]] | None:
        if self._stopped:
            return None
        try:
            return self._sample(self._next_trial())
        except Exception:
            self._stopped = True  # no other trial is asked for while the error is on its way
            raise

    def _next_trial(self) -> Trial:
        self._asked = None
        try:
            return Trial(self._study, self._resumed.pop()._trial_id) if self._resumed else self._study.ask()
        except Exception as error:
            if self._asked is not None:
                self._close_asked(self._asked, error)
            raise

    def _sample(self, trial: Trial) -> tuple[int, Trial, dict[str, Any]]:
        number = trial.number
        self._open[number] = trial
        if self._quick is None:
            # Nothing blocks, and a change of thread would cost as much as all else. Exact types: a subclass may do
            # anything.
            self._quick = (
                type(trial.storage) is InMemoryStorage and type(self._sampler) is RandomSampler and not self._callbacks
            )
        if self._objective.takes_trial and not self._quick:
            # Optuna samples when the objective first suggests; an async one would do that in the event loop.
            _ = trial.relative_params
        return number, trial, self._space.suggest(trial)

    def _close_asked(self, number: int, error: Exception) -> None:
        """Tell a trial that an ask has stored, but could not return."""
        with contextlib.suppress(Exception):  # the reason is worth less than the state
            stored = next(trial for trial in self._study.get_trials(deepcopy=False) if trial.number == number)
            self._study._storage.set_trial_user_attr(stored._trial_id, ERROR_ATTRIBUTE, _reason(error))
        self._study.tell(number, state=TrialState.FAIL)

    def _tell(self, number: int, trial: Trial, outcome: _Outcome) -> None:
        self._untold[number] = outcome
        if outcome.reason is not None:
            trial.set_user_attr(ERROR_ATTRIBUTE, outcome.reason)
        frozen = self._study.tell(trial, outcome.values, state=outcome.state)
        del self._open[number], self._untold[number]
        if outcome.fatal is not None:
            self._stopped = True
            raise outcome.fatal
        if outcome.state is TrialState.FAIL:
            logger.warning("Trial %d of `%s` failed: %s", number, self._objective.name, _line(outcome.reason))
        if self._observer is not None:
            self._observer(self._study, frozen)
        for callback in self._callbacks:
            callback(self._study, frozen)

    def _close_open(self, reason: str) -> None:
        """Tell what is asked and not told; an outcome that the storage has refused is offered again."""
        closing = _Outcome(TrialState.FAIL, reason=reason)
        left = {number: (trial, self._untold.get(number, closing)) for number, trial in self._open.items()}
        for pause in _CLOSING_PAUSES:
            time.sleep(pause)
            left = {number: each for number, each in left.items() if not self._tell_at_last(*each)}
            if not left:
                break
        for number, (_, outcome) in left.items():
            logger.error("Trial %d of `%s` could not be told: %s", number, self._objective.name, outcome)
        self._open.clear()

    def _tell_at_last(self, trial: Trial, outcome: _Outcome) -> bool:
        with contextlib.suppress(Exception):  # the reason is worth less than the state
            if outcome.reason is not None:
                trial.set_user_attr(ERROR_ATTRIBUTE, outcome.reason)
            if self._lost and trial.number not in self._untold:
                trial.set_user_attr(LOST_ATTRIBUTE, True)
        try:
            self._study.tell(trial, outcome.values, state=outcome.state, skip_if_finished=True)
        except Exception:  # noqa: BLE001 - tried again
            logger.debug("Telling trial %d failed.", trial.number, exc_info=True)
            return False
        return True


class _Recorder(wrapt.BaseObjectProxy):  # type: ignore[type-arg, misc, unused-ignore]
    """A sampler that says which trial an ask has stored: it is told before anything else can fail."""

    def __init__(self, sampler: BaseSampler, note: Callable[[int], None]) -> None:
        super().__init__(sampler)
        self._self_note = note

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._self_note(trial.number)
        self.__wrapped__.before_trial(study, trial)


class _SharedAttributes:
    """Stands for what a study keeps for each thread.

    Optuna clears its cache of trials in the thread that asks and tells. A trial that suggests in another thread would
    see the history as it was when that thread first looked.
    """

    in_optimize_loop = False
    cached_all_trials = None


def _view(study: optuna.Study, stop: Callable[[], None], note: Callable[[int], None]) -> optuna.Study:
    """Return a view of a study whose `stop` ends a search: Optuna's own works inside `study.optimize` only.

    Callbacks get it. Where one pickles or copies it, that is done to the study itself.
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
    if type(study.sampler) is not RandomSampler:  # that one cannot fail, and each look through a proxy costs
        vars(view)["sampler"] = _Recorder(study.sampler, note)
    return view


def _itself(study: optuna.Study) -> optuna.Study:
    return study


def _reason(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a user's `__str__`
        text = "<its text could not be made>"
    return f"{type(error).__name__}: {text}"[:_REASON_LIMIT]


def _line(text: str | None) -> str:
    """Put a text on one line."""
    return " ".join((text or "").split())


def _why(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "The search was cancelled while this trial ran."
    return f"The search ended while this trial ran: {_reason(error)}"[:_REASON_LIMIT]


class _ToldAtExit:
    """Cancels a search that still runs when the interpreter exits, and waits until its trials are told.

    A local eager workflow runs in a daemon thread of flytekit's; when Ctrl-C ends the main thread, nothing else would
    tell the search.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, close: Callable[[], None]) -> None:
        self._loop = loop
        self._close = close
        self._task = asyncio.current_task()
        self._closed = threading.Event()

    def __enter__(self) -> None:
        # Registered for each search, not once: what was registered last is called first, and flytekit, which has made
        # its loop before, stops it at exit.
        atexit.register(self._cancel)

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        atexit.unregister(self._cancel)

    def _cancel(self) -> None:
        try:
            if self._task is not None and self._loop.is_running():
                self._loop.call_soon_threadsafe(self._task.cancel)
                self._closed.wait(_EXIT_PATIENCE)
            elif self._task is not None and not self._loop.is_closed():  # `run_until_complete` was interrupted
                self._task.cancel()
                self._loop.run_until_complete(asyncio.wait([self._task], timeout=_EXIT_PATIENCE))
        finally:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # the last chance: a third Ctrl-C would take it
            self._close()
