"""The search loop: ask, run, tell, inside the limits.

It knows asyncio and Optuna only. Trials are run by a `Runner` that it is given. Trials are asked and told in one thread
of their own, in order, and callbacks run there, so that none of it ever blocks the event loop.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import math
import signal
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
from optuna.trial import Trial, TrialState

from optuna_flyte_dsl.errors import (
    ClusterError,
    InvalidObjectiveError,
    ObjectiveValueError,
    PythonExitError,
    SearchRunningError,
    TrialTimeoutError,
    WorkerDiedError,
)
from optuna_flyte_dsl.flyte.entities import retries_are_used
from optuna_flyte_dsl.ledger import REASON_LIMIT, Asked, Ledger, Outcome, reason_of
from optuna_flyte_dsl.log import logger
from optuna_flyte_dsl.objective import Objective
from optuna_flyte_dsl.share import LATER, Later
from optuna_flyte_dsl.threads import Threads, insist

_LOOK_SECONDS = 1.0
"""Seconds between two looks whether other processes have left something to do."""

_EXIT_PATIENCE = 10.0
"""Seconds that the interpreter's exit waits for a search to tell its trials."""

_SILENCE = 30.0
"""Seconds for which a storage may neither answer nor refuse a call when the search ends."""

_LISTEN_SECONDS = 0.25

_FEW = 10
"""Failures in a row that show that nothing works, and trials of a search that is not worth ending before."""

_ENDING = (ClusterError, ObjectiveValueError)
"""Errors of a trial that the next one would meet too."""


class Runner(Protocol):
    """Runs the objective of one trial, wherever that is."""

    async def run(
        self, trial: Trial, arguments: Mapping[str, Any], *, attempt: int, begun: Callable[[], None] | None
    ) -> Any:
        """Run one trial.

        Args:
            trial: The trial; objectives of some kinds take it.
            arguments: The objective's keyword arguments.
            attempt: Which attempt of this trial it is, from 0.
            begun: Called in the event loop when the objective begins to run, after all waiting in queues; `None` where
                nobody needs to know.

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
        timeout: Seconds that the search may take.
        trial_timeout: Seconds that one trial may run.
        retries: How often a trial that raised is tried again, with the same parameters.
        catch: What a trial may raise and only fail; anything else ends the search.
        max_consecutive_failures: Failures in a row after which nothing works; "auto" for enough to see it.
        deterministic: Whether what a sampler sees depends on a trial's place only.
    """

    n_trials: int
    concurrency: int
    delay: float = 0.0
    timeout: float | None = None
    trial_timeout: float | None = None
    retries: int = 0
    catch: tuple[type[BaseException], ...] = (Exception,)
    max_consecutive_failures: int | str | None = "auto"
    deterministic: bool = False

    @property
    def failures(self) -> tuple[int, int] | None:
        """Failures in a row after which a search ends: before any success, and after one."""
        if self.max_consecutive_failures is None:
            return None
        if isinstance(self.max_consecutive_failures, int):
            return self.max_consecutive_failures, self.max_consecutive_failures
        if self.n_trials <= _FEW:
            return _FEW, _FEW
        first = max(5, min(max(_FEW, 2 * self.concurrency), self.n_trials // 4))
        return first, 5 * first


class Search:
    """One search: it asks, runs and tells trials until a limit is reached.

    Args:
        ledger: Asks and tells.
        objective: What judges a returned value.
        runner: Runs the trials.
        limits: How much, and how much at once.
        initial_points: Parameters of the first trials, by name. A point that the study has already is left out.
        commit: Makes last what was told before, where the study is kept elsewhere; awaited after each trial.
        thread: The one thread in which the study is used.
    """

    def __init__(
        self,
        ledger: Ledger,
        objective: Objective,
        runner: Runner,
        limits: Limits,
        *,
        initial_points: Sequence[Mapping[str, Any]] = (),
        commit: Callable[[], Awaitable[None]] | None = None,
        thread: Threads,
    ) -> None:
        self._ledger = ledger
        self._objective = objective
        self._runner = runner
        self._limits = limits
        self._limited = limits.timeout is not None or limits.trial_timeout is not None
        self._simple = not self._limited and not limits.retries and not limits.deterministic
        self._initial_points = tuple(initial_points)
        self._commit = commit
        self._thread = thread
        self._claimed = 0
        self._dry = False  # whether the last ask has found nothing to do; what ends later may leave something
        self._timed_out = False
        self._suspended = False
        self._runs = 0  # trials whose objectives run
        self._tasks: set[asyncio.Task[BaseException | None]] = set()  # one for each trial in flight
        self._next_start = float("-inf")
        self._deadline = math.inf
        ledger.on_stop = self.stop
        self._turns = (
            _Turns(limits.concurrency, self._wants_more, lambda: self._claimed) if limits.deterministic else None
        )

    async def run(self) -> None:
        """Run the search to its end.

        Whatever happens, every trial that was asked for is told before this returns or raises.

        Raises:
            ObjectiveValueError: If the objective returned what no study can take.
            TooManyFailuresError: If so many trials have failed in a row that nothing works.
            StorageUnavailableError: If the storage does not answer, and a trial that has finished could not be told.
            BaseException: What ended the search: a callback's error, the storage's, a cancellation.
        """
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._wake = asyncio.Event()  # set when the search stops: a trial that waits out a delay need not
        self._pace = asyncio.Lock()
        self._over: asyncio.Future[None] = self._loop.create_future()
        alarms: list[asyncio.TimerHandle] = []
        if self._limits.timeout is not None:
            self._deadline = self._loop.time() + self._limits.timeout
            alarms.append(self._loop.call_at(self._deadline, self._ledger.hurry))
            alarms.append(self._loop.call_at(self._deadline, self._end_silence))
        with _ToldAtExit(self._loop, self._close_at_last):
            try:
                await self._thread.run(self._ledger.enqueue, self._initial_points)
                self._add_trial()
                await self._over
            except GeneratorExit:  # the loop is gone: nothing can be awaited any more
                raise
            except BaseException as error:
                await insist(functools.partial(self._abandon, error))
                raise
            finally:
                for alarm in alarms:
                    alarm.cancel()
                self._close_at_last()

    def _end_silence(self) -> None:
        """End a search whose storage neither answers nor refuses, so that its end is never told."""
        if self._over.done():
            return
        if self._ledger.silence > _SILENCE and not self._runs:
            self._over.set_exception(TimeoutError("The search's timeout has come, and its storage does not answer."))
        else:
            self._loop.call_later(_LISTEN_SECONDS, self._end_silence)

    def stop(self) -> None:
        """Let no other trial start; those that run go on. From any thread."""
        self._ledger.stopped = True
        self._loop.call_soon_threadsafe(self._wake.set)

    def suspend(self) -> None:
        """Let the trials that run when the search is cancelled stay RUNNING: another process will go on with them."""
        self._suspended = True

    def mark_lost(self) -> None:
        """Note on the trials that run when the search is cancelled that their process has ended, not they."""
        self._ledger.mark_lost()

    def _wants_more(self) -> bool:
        if self._ledger.stopped or self._timed_out or self._dry:
            return False
        return self._ledger.totals or self._claimed < self._limits.n_trials

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
            turn = await self._turns.to_ask() if self._turns is not None else 0
            if self._limits.delay:
                await self._keep_pace()
            asked = await self._next() if not self._simple or not self._ledger.quick else self._ledger.ask()
            if not isinstance(asked, Asked):
                self._dry = True
                if self._turns is not None:
                    self._turns.asked()
                return None
            if self._turns is not None:
                self._turns.asked()
            if len(self._tasks) < self._limits.concurrency and self._wants_more():
                self._add_trial()
            self._runs += 1
            try:
                outcome = asked.outcome or await (
                    self._attempt(asked, 0, _NO_END) if self._simple else self._attempts(asked)
                )
            finally:
                self._runs -= 1
            if self._turns is not None:
                await self._thread.run(self._ledger.keep, asked, outcome)
                await self._turns.to_tell(turn)
            if self._ledger.quick:
                self._ledger.tell(asked, outcome)
            else:
                await self._thread.run(self._ledger.tell, asked, outcome)
            self._dry = False
            if self._turns is not None:
                self._turns.told()
            if self._commit is not None:
                await self._commit()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if self._is_closed_by(error):
                raise
            return error
        return None

    async def _next(self) -> Asked | None:
        """Ask for a trial; where other processes run all that is missing, wait for what they leave."""
        while not self._is_late():
            asked: Asked | Later | None = (
                self._ledger.ask() if self._ledger.quick else await self._thread.run(self._ledger.ask)
            )
            if asked is not LATER:
                return asked
            if self._turns is not None:
                raise SearchRunningError(
                    f"`deterministic=True`: another search works on the study of `{self._objective.name}` at the same "
                    "time, and what it finds depends on time. Wait for its end, or drop `deterministic`."
                )
            await self._wait_until(min(self._loop.time() + _LOOK_SECONDS, self._deadline))
        return None

    def _is_late(self) -> bool:
        self._timed_out = self._timed_out or self._loop.time() >= self._deadline
        return self._timed_out

    async def _attempts(self, asked: Asked) -> Outcome:
        """Run a trial, and again with the same parameters while it raises, as often as it may."""
        reasons: list[str] = []
        clock = _Clock(self._limits.trial_timeout, self._deadline)
        while True:
            outcome = await self._attempt(asked, len(reasons), clock)
            error = outcome.error
            if (
                error is None
                or outcome.fatal is not None
                or outcome.lost
                or isinstance(error, TrialTimeoutError | asyncio.CancelledError)
                or len(reasons) >= self._limits.retries
                or self._ledger.stopped
                or retries_are_used(error)
            ):
                return outcome
            reasons.append(outcome.reason or "")
            await self._thread.run(self._ledger.note_attempts, asked.trial, reasons)

    async def _attempt(self, asked: Asked, attempt: int, clock: _Clock) -> Outcome:
        scope: asyncio.Timeout | None = None
        try:
            if not self._limited:
                return self._judge(await self._runner.run(asked.trial, asked.arguments, attempt=attempt, begun=None))
            async with asyncio.timeout_at(clock.until) as scope:
                begun = functools.partial(clock.begin, scope) if clock.seconds is not None else None
                returned = await self._runner.run(asked.trial, asked.arguments, attempt=attempt, begun=begun)
            return self._judge(returned)
        except asyncio.CancelledError as cancelled:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return self._judge_error(cancelled)  # the objective's own doing
        except BaseException as error:
            if self._is_closed_by(error):
                raise
            if scope is not None and scope.expired() and isinstance(error, TimeoutError):
                return self._judge_timeout()
            return self._judge_error(error)

    def _judge_timeout(self) -> Outcome:
        if self._is_late():
            reason = f"The search's timeout of {self._limits.timeout:g} s came while this trial ran."
            return Outcome(TrialState.FAIL, reason=reason, lost=True)
        error = TrialTimeoutError(
            f"The trial ran for longer than `trial_timeout`, {self._limits.trial_timeout:g} s, and was stopped."
        )
        return Outcome(TrialState.FAIL, reason=reason_of(error), error=error)

    def _is_closed_by(self, error: BaseException) -> bool:
        """Tell whether an error closes the coroutine that runs, whose loop is gone: an objective may raise it too."""
        return isinstance(error, GeneratorExit) and asyncio.current_task(self._loop) is None

    async def _keep_pace(self) -> None:
        async with self._pace:
            await self._wait_until(min(self._next_start, self._deadline))
            self._next_start = self._loop.time() + self._limits.delay

    async def _wait_until(self, moment: float) -> None:
        try:
            async with asyncio.timeout_at(max(moment, self._loop.time())):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _judge(self, returned: Any) -> Outcome:
        try:
            values = self._objective.values(returned, self._ledger.n_objectives)
        except ObjectiveValueError as wrong:
            return Outcome(TrialState.FAIL, reason=reason_of(wrong), fatal=wrong)
        if any(map(math.isnan, values)):
            return Outcome(TrialState.FAIL, reason=f"The objective returned NaN: {returned!r}")
        return Outcome(TrialState.COMPLETE, values)

    def _judge_error(self, error: BaseException) -> Outcome:
        if isinstance(error, optuna.TrialPruned):
            return Outcome(TrialState.PRUNED)
        if isinstance(error, PythonExitError):
            return Outcome(TrialState.FAIL, reason=reason_of(error), fatal=error, lost=True)
        several = self._ledger.n_objectives > 1 and isinstance(error, NotImplementedError)
        if several and str(error).startswith(("Trial.report", "Trial.should_prune")):
            error = self._reports_several(error)
        elif not isinstance(error, _ENDING) and self._is_caught(error):
            logger.debug("A trial of `%s` failed.", self._objective.name, exc_info=error)
            return Outcome(TrialState.FAIL, reason=reason_of(error), error=error)
        return Outcome(TrialState.FAIL, reason=reason_of(error), fatal=error)

    def _reports_several(self, error: BaseException) -> BaseException:
        """Return what says that Optuna takes no reports where there are several objectives: no trial could succeed."""
        refused = InvalidObjectiveError(
            f"`{self._objective.name}` has {self._ledger.n_objectives} objectives, and Optuna takes `trial.report` and "
            "`trial.should_prune` for one only. Leave them out, or keep the values with `trial.set_user_attr`."
        )
        refused.__cause__ = error
        return refused

    def _is_caught(self, error: BaseException) -> bool:
        """Tell whether an error is a trial's failure. One from elsewhere may stand for another."""
        if isinstance(error, (*self._limits.catch, asyncio.CancelledError, WorkerDiedError, TrialTimeoutError)):
            return True
        stands_for: Any = getattr(error, "stands_for", None)
        return callable(stands_for) and bool(stands_for(self._limits.catch))

    async def _abandon(self, error: BaseException) -> None:
        """Give up all running trials, and tell those that were asked for."""
        self._ledger.stopped = True
        self._ledger.hurry()
        self._over.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self._suspended:
            closing = self._thread.run(self._ledger.close_open, _why(error))
            while not closing.done():
                await asyncio.wait([closing], timeout=_LISTEN_SECONDS)
                if not closing.done() and self._ledger.silence > _SILENCE:
                    raise self._ledger.give_up()
            closing.result()

    def _close_at_last(self) -> None:
        """Tell what is open still, in this thread: a second interrupt has broken off the closing, or the loop."""
        if self._ledger.open and not self._suspended:
            self._ledger.stopped = True
            self._ledger.close_open("The search was interrupted while this trial ran.")


class _Clock:
    """The time of one trial, over all its attempts.

    Args:
        seconds: How long it may run, from when its objective first does; `None` for no end.
        deadline: When the search ends, in the loop's time.
    """

    def __init__(self, seconds: float | None, deadline: float) -> None:
        self.seconds = seconds
        self._until = deadline
        self._has_begun = False

    @property
    def until(self) -> float | None:
        """When it is over, as far as that is known."""
        return None if math.isinf(self._until) else self._until

    def begin(self, scope: asyncio.Timeout) -> None:
        """Start, if that has not been before."""
        if not self._has_begun and self.seconds is not None:
            self._has_begun = True
            self._until = min(self._until, asyncio.get_running_loop().time() + self.seconds)
            with contextlib.suppress(RuntimeError):  # it is over already
                scope.reschedule(self._until)


_NO_END = _Clock(None, math.inf)


class _Turns:
    """Lets trials be asked and told in one order, whatever order they end in: tell k, ask k + concurrency, tell k + 1.

    Args:
        concurrency: How many trials are asked and not told, at most.
        wants_more: Tells whether another trial will be asked for.
        claimed: Tells how many have been asked for, or are about to be.
    """

    def __init__(self, concurrency: int, wants_more: Callable[[], bool], claimed: Callable[[], int]) -> None:
        self._concurrency = concurrency
        self._claimed = claimed
        self._wants_more = wants_more
        self._given = self._asked = self._told = 0
        self._waiting: set[asyncio.Future[None]] = set()

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(future)
            try:
                await future
            finally:
                self._waiting.discard(future)

    def wake(self) -> None:
        """Let those who wait look again."""
        for future in list(self._waiting):
            if not future.done():
                future.set_result(None)

    async def to_ask(self) -> int:
        """Wait until a trial may be asked for. Return its place in the order."""
        turn, self._given = self._given, self._given + 1
        await self._until(lambda: self._asked == turn and self._told > turn - self._concurrency)
        return turn

    def asked(self) -> None:
        """Note that the next trial was asked for."""
        self._asked += 1
        self.wake()

    async def to_tell(self, turn: int) -> None:
        """Wait until a trial may be told: after those before it, and after the asks that do not see it."""
        await self._until(lambda: self._told == turn and self._asked >= self._asks_before(turn))

    def _asks_before(self, turn: int) -> int:
        asks = turn + self._concurrency
        return asks if self._wants_more() else min(asks, self._claimed())

    def told(self) -> None:
        """Note that the next trial was told."""
        self._told += 1
        self.wake()


def _why(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "The search was cancelled while this trial ran."
    return f"The search ended while this trial ran: {reason_of(error)}"[:REASON_LIMIT]


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
