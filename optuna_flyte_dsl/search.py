"""The search loop: ask, run, tell, inside the limits.

It knows asyncio and Optuna only. Trials are run by a `Runner` that it is given; every operation on the study happens
in one thread of its own, in order, so that no storage and no sampler ever blocks the event loop.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
import wrapt
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_flyte_dsl.errors import ObjectiveValueError
from optuna_flyte_dsl.objective import Objective, has_nan
from optuna_flyte_dsl.space import SearchSpace
from optuna_flyte_dsl.threads import Threads

logger = logging.getLogger("optuna_flyte_dsl")

ERROR_ATTRIBUTE = "optuna_flyte_dsl:error"
"""The user attribute of a failed trial that holds the reason, in at most 2,000 characters."""

_REASON_LIMIT = 2_000
_EXIT_PATIENCE = 10.0
"""Seconds that the interpreter's exit waits for a search to tell its trials."""

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


@dataclass(frozen=True)
class _Outcome:
    """How one run ended: with `values`, or in a `state` that has none, for a `reason`."""

    state: TrialState
    values: tuple[float, ...] | None = None
    reason: str | None = None
    fatal: BaseException | None = None


class StoppableStudy(wrapt.BaseObjectProxy):  # type: ignore[misc, unused-ignore]
    """A study whose `stop` ends the search. Optuna's own `stop` works inside `study.optimize` only."""

    def __init__(self, study: optuna.Study, stop: Callable[[], None]) -> None:
        super().__init__(study)
        self._self_stop = stop

    def stop(self) -> None:
        """Start no further trial; those that run go on to their end."""
        self._self_stop()


class Search:
    """One search: it asks, runs and tells trials until a limit is reached.

    Args:
        study: Where trials are asked and told.
        objective: What judges a returned value.
        space: Makes a trial's arguments.
        runner: Runs the trials.
        limits: How much, and how much at once.
        callbacks: Optuna's callbacks, called with the study and each finished trial. An error in one ends the search.
        initial_points: Parameters of the first trials, by name. A point that the study has already is left out.
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
        callbacks: Sequence[Observer] = (),
        initial_points: Sequence[Mapping[str, Any]] = (),
        thread: Threads,
    ) -> None:
        self._study = study
        self._objective = objective
        self._space = space
        self._runner = runner
        self._limits = limits
        self._callbacks = tuple(callbacks)
        self._initial_points = tuple(initial_points)
        self._thread = thread
        self._n_objectives = len(study.directions)
        self._stoppable = StoppableStudy(study, self._stop)
        self._open: dict[int, Trial] = {}  # asked and not told; changed in the study's thread only
        self._claimed = 0
        self._stopped = False
        self._workers: set[asyncio.Task[tuple[None, BaseException | None]]] = set()
        self._next_start = float("-inf")

    async def run(self) -> None:
        """Run the search to its end.

        Whatever happens, every trial that was asked for is told before this returns or raises.

        Raises:
            ObjectiveValueError: If the objective returned what no study can take.
            BaseException: What ended the search: a callback's error, the storage's, a cancellation.
        """
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()  # set when the search stops: a worker that waits out a delay need not
        self._pace = asyncio.Lock()
        self._over: asyncio.Future[None] = self._loop.create_future()
        with _ToldAtExit(self._loop):
            try:
                await self._thread.run(self._enqueue)
                self._add_worker()
                await self._over
            except BaseException as error:
                await _insist(functools.partial(self._abandon, error))
                raise

    async def _work(self) -> None:
        while (trial := await self._start()) is not None:
            if len(self._workers) < self._limits.concurrency and self._wants_more():
                self._add_worker()
            outcome = await self._attempt(*trial)
            await self._thread.run(self._tell, trial[0], outcome)

    def _add_worker(self) -> None:
        worker = self._loop.create_task(_captured(self._work()))
        self._workers.add(worker)
        worker.add_done_callback(self._worker_done)

    def _worker_done(self, worker: asyncio.Task[tuple[None, BaseException | None]]) -> None:
        self._workers.discard(worker)
        error = asyncio.CancelledError() if worker.cancelled() else worker.result()[1]
        if self._over.done():
            return
        if error is not None:
            self._over.set_exception(error)
        elif not self._workers:
            self._over.set_result(None)

    def _wants_more(self) -> bool:
        return not self._stopped and self._claimed < self._limits.n_trials

    async def _start(self) -> tuple[Trial, dict[str, Any]] | None:
        """Ask for the next trial when its time has come; return None when there is none."""
        if not self._wants_more():
            return None
        self._claimed += 1
        if self._limits.delay:
            async with self._pace:
                await self._wait_until(self._next_start)
                self._next_start = self._loop.time() + self._limits.delay
        return await self._thread.run(self._ask)  # type: ignore[no-any-return]

    async def _wait_until(self, moment: float) -> None:
        try:
            async with asyncio.timeout_at(max(moment, self._loop.time())):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _attempt(self, trial: Trial, arguments: dict[str, Any]) -> _Outcome:
        # A task of its own for each trial: what an objective sets in its context does not reach the next trial.
        attempt = self._loop.create_task(_captured(self._runner.run(trial, arguments)))
        try:
            returned, error = await attempt
        except asyncio.CancelledError as cancelled:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            returned, error = None, cancelled  # the objective's own doing
        return self._judge(returned, error)

    def _judge(self, returned: Any, error: BaseException | None) -> _Outcome:
        match error:
            case None:
                try:
                    values = self._objective.values(returned, self._n_objectives)
                except ObjectiveValueError as wrong:
                    return _Outcome(TrialState.FAIL, reason=_reason(wrong), fatal=wrong)
                if has_nan(values):
                    return _Outcome(TrialState.FAIL, reason=f"The objective returned NaN: {returned!r}")
                return _Outcome(TrialState.COMPLETE, values)
            case optuna.TrialPruned():
                return _Outcome(TrialState.PRUNED)
            case Exception() | asyncio.CancelledError():
                logger.debug("A trial of `%s` failed.", self._objective.name, exc_info=error)
                return _Outcome(TrialState.FAIL, reason=_reason(error))
            case _:
                return _Outcome(TrialState.FAIL, reason=_reason(error), fatal=error)

    async def _abandon(self, error: BaseException) -> None:
        """End all workers, and tell the trials that they leave behind."""
        self._stopped = True
        self._over.cancel()
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await self._thread.run(self._close_open, _why(error))

    def _stop(self) -> None:
        self._stopped = True
        self._loop.call_soon_threadsafe(self._wake.set)

    # What follows runs in the study's thread.

    def _enqueue(self) -> None:
        for point in self._initial_points:
            self._study.enqueue_trial(dict(point), skip_if_exists=True)

    def _ask(self) -> tuple[Trial, dict[str, Any]] | None:
        if self._stopped:
            return None
        try:
            trial = self._study.ask()
        except Exception:
            self._close_half_asked()
            raise
        self._open[trial.number] = trial
        arguments = self._space.suggest(trial)
        if self._objective.takes_trial:
            trial.study = self._stoppable
        return trial, arguments

    def _tell(self, trial: Trial, outcome: _Outcome) -> None:
        if outcome.reason is not None:
            trial.set_user_attr(ERROR_ATTRIBUTE, outcome.reason)
        frozen = self._study.tell(trial, outcome.values, state=outcome.state)
        del self._open[trial.number]
        if outcome.fatal is not None:
            raise outcome.fatal
        if outcome.state is TrialState.FAIL:
            logger.warning("Trial %d of `%s` failed: %s", trial.number, self._objective.name, _line(outcome.reason))
        for callback in self._callbacks:
            callback(self._stoppable, frozen)

    def _close_open(self, reason: str) -> None:
        for trial in list(self._open.values()):
            try:
                trial.set_user_attr(ERROR_ATTRIBUTE, reason)
                self._study.tell(trial, state=TrialState.FAIL)
            except Exception:
                logger.exception("Trial %d of `%s` could not be told.", trial.number, self._objective.name)
        self._open.clear()

    def _close_half_asked(self) -> None:
        """Tell the trial that an `ask` has stored before its sampler raised.

        The error does not say which trial that is: it is the one that runs and is not ours. If there are several, other
        processes use the study too, and none is touched.
        """
        strangers = [
            frozen
            for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if frozen.number not in self._open
        ]
        if len(strangers) == 1:
            self._study.tell(strangers[0].number, state=TrialState.FAIL)


async def _captured(run: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """Return what a run returned or raised: asyncio lets KeyboardInterrupt and SystemExit out of a task at once."""
    try:
        return await run, None
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 - it is judged by the caller
        return None, error


async def _insist(closing: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Await something to its end, and anew when it is cancelled, however often the caller is cancelled meanwhile."""
    while True:
        task = asyncio.ensure_future(closing())
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            return task.result()


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_REASON_LIMIT]


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

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
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
        if self._task is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._closed.wait(_EXIT_PATIENCE)
