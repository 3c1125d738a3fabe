"""The search loop: asks for trials, runs them at the same time, and tells them, until a limit is reached.

A single thread asks for trials, tells trials in order and runs callbacks, so that no such call blocks the event loop.
With a database on a server, other threads store and tell trials, because each call waits for the server many times.
"""

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from optuna.trial import TrialState

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._threads import Threads, finish
from optuna_flyte_dsl.errors import InvalidObjectiveError, TrialTimeoutError
from optuna_flyte_dsl.options import Options
from optuna_flyte_dsl.search.ask_tell import AskedTrial, AskTell
from optuna_flyte_dsl.search.exit_guard import ExitGuard
from optuna_flyte_dsl.search.loop_watch import LoopWatch
from optuna_flyte_dsl.search.outcome import REASON_LIMIT, Judge, Outcome, reason_of
from optuna_flyte_dsl.search.runner import Runner, TrialRun
from optuna_flyte_dsl.search.trial_clock import NO_TIME_LIMIT, TrialClock
from optuna_flyte_dsl.search.trial_order import TrialOrder
from optuna_flyte_dsl.search.trial_series import SeriesGate, TrialSeries
from optuna_flyte_dsl.space.containers import copy_containers
from optuna_flyte_dsl.space.objective import Kind, Objective
from optuna_flyte_dsl.study.attributes import ATTEMPTS
from optuna_flyte_dsl.study.trial_quota import ASK_LATER, AskLater


@dataclass(eq=False)
class SearchLoop:
    """Runs one search: asks for its trials, runs them and tells their results."""

    trials: AskTell
    objective: Objective
    runner: Runner
    options: Options
    _: KW_ONLY
    thread: Threads  # the single thread that asks for trials
    # The threads that store and tell trials; `None` if the thread that asks does so too.
    writers: Threads | None = None
    n_trials: int  # the number of trials to run; in a resumed search, it may be less than `options.n_trials`
    initial_points: Sequence[Mapping[str, Any]] = ()
    started: float | None = None  # when the search was called, in the event loop's time; by default when it is run
    # Awaited after each trial. `commit` saves the checkpoint in which the study is kept; `None` without a checkpoint.
    commit: Callable[[], Awaitable[None]] | None = None

    def __post_init__(self) -> None:
        trials, options = self.trials, self.options
        self._writers = self.writers or self.thread
        trials.stores_apart = self.writers is not None
        returns = self.objective.returns
        n_objectives = len(trials.study.directions)
        self._judge = Judge(self.objective.name, n_objectives, options.caught, returns.constraints, returns.fields)
        self._timeout, self._trial_timeout = options.timeouts
        self._gate = SeriesGate()  # its lock is held while a trial is counted, or asked for outside of `thread`
        self._claimed = 0  # trials that were asked for, or are about to be
        self._found_none = False  # whether the last ask returned no trial; telling a trial resets the flag
        self._timed_out = False
        self._is_cancelled = False  # whether the search cancels its trials
        self._suspended = False
        self._running = 0  # trials whose objectives run
        self._tasks: set[asyncio.Task[None]] = set()  # one for each trial in flight
        self._next_start = float("-inf")
        self._deadline = math.inf
        trials.on_stop = self.stop
        self._order = (
            TrialOrder(options.concurrency, self._wants_more, lambda: self._claimed) if options.deterministic else None
        )

    async def run(self) -> None:
        """Run the search to its end. Before `run` ends, it tells each open trial, unless `suspend` was called."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._context = contextvars.copy_context()
        self._wake = asyncio.Event()  # set when the search stops, so that no trial waits out its delay
        self._pace = asyncio.Lock()
        self._over: asyncio.Future[None] = self._loop.create_future()
        alarms: list[asyncio.TimerHandle] = []
        if self._timeout is not None:
            self._deadline = (self._loop.time() if self.started is None else self.started) + self._timeout
            alarms.append(self._loop.call_at(self._deadline, self.trials.hurry))
            alarms.append(self._loop.call_at(self._deadline, self._end_if_silent))
        watch = LoopWatch(self.objective.name)
        if self.objective.kind is Kind.ASYNC_FUNCTION and self.options.concurrency > 1:
            watch.start()
        with ExitGuard(self._loop, self._close_in_this_thread, lambda: self.thread.is_forked):
            try:
                await self.thread.run(self.trials.enqueue, self.initial_points)
                self._claimed += 1
                self._add_trial()
                await self._over
                await self._tell_open("The search ended while this trial ran.")
            except GeneratorExit:  # the event loop is gone: nothing can be awaited any more
                raise
            except BaseException as error:
                await finish(functools.partial(self._abandon, error))
                raise
            finally:
                for alarm in alarms:
                    alarm.cancel()
                watch.stop()
                self._close_in_this_thread()
                self.trials.close()

    def stop(self) -> None:
        """Start no other trial. Running trials go on. Any thread may call this."""
        self.trials.stopped = True
        self._loop.call_soon_threadsafe(self._wake.set)

    def suspend(self) -> None:
        """Leave running trials RUNNING when the search is cancelled, because another process will adopt them."""
        self._suspended = True

    def _end_if_silent(self) -> None:
        """End a search that is past its timeout, and whose storage neither answers nor refuses a call."""
        if self._over.done():
            return
        if self.trials.silence > pauses.storage_silence and not self._running:
            self._over.set_exception(TimeoutError("The search's timeout has come, and its storage does not answer."))
        else:
            self._loop.call_later(pauses.silence_check, self._end_if_silent)

    def _wants_more(self) -> bool:
        is_over = self.trials.stopped or self._timed_out or self._found_none
        return not is_over and (self.trials.has_quota or self._claimed < self.n_trials)

    def _claim(self) -> bool:
        """Return whether another trial is wanted, and count it then. Any thread may call this."""
        with self._gate.lock:
            is_wanted = self._wants_more()
            self._claimed += is_wanted
            return is_wanted

    def _add_trial(self) -> None:
        # Each trial has its own context: context variables that one trial's objective sets do not reach other trials.
        # The loop's task factory is passed by: eager tasks would run each trial within the step of another one.
        task = asyncio.Task(self._run_trial(), loop=self._loop, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._on_trial_done)

    def _on_trial_done(self, task: asyncio.Task[None]) -> None:
        """Start another trial, or end the search: the last step of a trial's task, or its callback when it is done."""
        self._tasks.discard(task)
        error: BaseException | None = None
        if task.done():
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self._end(error)
        elif self._over.done():
            return
        elif self._claim():
            self._add_trial()
        elif not self._tasks:
            self._over.set_result(None)

    def _end(self, error: BaseException) -> None:
        self.trials.stopped = True
        if not self._over.done():
            self._over.set_exception(error)

    async def _run_trial(self) -> None:
        """Run one trial, and those that its thread goes on with."""
        try:  # asyncio re-raises some errors of a task at once
            turn = await self._order.turn_to_ask() if self._order is not None else 0
            if self.options.delay:
                async with self._pace:
                    await self._wait_until(min(self._next_start, self._deadline))
                    self._next_start = self._loop.time() + self.options.delay
            is_quick = self.trials.is_quick and not self._is_late()
            asked = self._ask_here() if is_quick else await self._next_trial()
            if self._order is not None:
                self._order.asked()
            if asked is None:
                self._found_none = True
                if self._order is not None:  # the next trials wait for this turn
                    await self._order.turn_to_tell(turn)
                    self._order.told()
                return
            if len(self._tasks) < self.options.concurrency and self._claim():
                self._add_trial()
            series = None
            if self._has_series:
                series = TrialSeries(self.trials, self._judge, asked, self._ask_on, self._context, self._gate)
            self._running += 1
            try:
                if self._is_late():  # the ask has lasted beyond the timeout
                    outcome = asked.outcome or self._timed_out_outcome()
                else:
                    outcome = asked.outcome or await self._run_objective(asked, series)
            finally:
                self._running -= 1
            if series is not None:
                asked = series.take()
                if asked is None:
                    return
                outcome = asked.outcome or outcome
            if self._order is not None:
                await self.thread.run(self.trials.keep, asked, outcome)
                await self._order.turn_to_tell(turn)
            if self.trials.is_quick:
                self.trials.tell(asked, outcome)
            else:
                await self.trials.promise(self._writers.run, self.trials.tell, asked, outcome)
            self._found_none = False
            if series is not None:
                self._gate.waiting.discard(series)
            if self._order is not None:
                self._order.told()
            if self.commit is not None:
                await self.commit()
            if task := asyncio.current_task():
                self._on_trial_done(task)  # now, because a callback takes the event loop a step more
                task.remove_done_callback(self._on_trial_done)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if self._closes_coroutine(error):
                raise
            self._end(error)

    async def _next_trial(self) -> AskedTrial | None:
        """Ask for a trial. While other processes run all missing trials, ask again and again.

        One of the other processes may die, so that its trial must be run again.
        """
        while not self._is_late():
            asked: AskedTrial | AskLater | None = await self.thread.run(self.trials.ask)
            if asked is not ASK_LATER:
                if asked is not None and self.trials.stores_apart:
                    await self.trials.promise(self._writers.run, self.trials.store, asked)
                return asked
            await self._wait_until(min(self._loop.time() + pauses.other_processes, self._deadline))
        return None

    def _ask_here(self) -> AskedTrial | None:
        """Ask for a trial in this thread: the ask blocks nothing."""
        with self._gate.lock:
            asked = self.trials.ask()
            return None if asked is ASK_LATER else asked

    def _ask_on(self) -> AskedTrial | None:
        """Ask for a trial in the thread that has run another one. Whoever ends the search waits for this ask."""
        if self._gate.waiting or self._over.done() or not self._claim():
            return None
        return self._ask_here()

    @functools.cached_property
    def _has_series(self) -> bool:
        """Whether a thread that has run a trial may ask for the next one: read when the first trial was asked for."""
        needs = (self._timeout, self._trial_timeout, self._order, self.commit)
        if any(each is not None for each in needs) or self.options.delay or self.options.retries:
            return False
        return bool(self.trials.is_quick) and self.objective.kind is not Kind.ASYNC_FUNCTION

    def _is_late(self) -> bool:
        self._timed_out = self._timed_out or (self._timeout is not None and self._loop.time() >= self._deadline)
        return self._timed_out

    def _run_objective(self, asked: AskedTrial, series: TrialSeries | None) -> Coroutine[Any, Any, Outcome]:
        has_limit = self._timeout is not None or self._trial_timeout is not None
        clock = TrialClock(self._trial_timeout, self._deadline) if has_limit else NO_TIME_LIMIT
        if self.options.retries:
            return self._run_attempts(asked, clock)
        run = TrialRun(asked.trial, asked.arguments, len(asked.attempts), series=series)
        return self._run_attempt(run, clock)

    async def _run_attempts(self, asked: AskedTrial, clock: TrialClock) -> Outcome:
        """Run a trial. While the objective raises and retries are left, run it again with the same parameters."""
        # An adopted trial may have made attempts in the process that has died.
        reasons: list[str] = list(asked.attempts)
        while True:
            # The objective may change its arguments: each attempt gets its own copies.
            run = TrialRun(asked.trial, copy_containers(asked.arguments), len(reasons))
            outcome = await self._run_attempt(run, clock)
            if not outcome.may_be_retried or len(reasons) >= self.options.retries or self.trials.stopped:
                return outcome
            reasons.append(outcome.reason or "")
            await self._writers.run(asked.trial.set_user_attr, ATTEMPTS, list(reasons))

    async def _run_attempt(self, run: TrialRun, clock: TrialClock) -> Outcome:
        scope: asyncio.Timeout | None = None
        try:
            if clock is NO_TIME_LIMIT:
                return self._judge.returned(await self._returned(run))
            async with asyncio.timeout_at(clock.until) as scope:
                if clock.seconds is not None:
                    run = dataclasses.replace(run, on_begin=functools.partial(clock.begin, scope))
                returned = await self._returned(run)
            return self._judge.returned(returned)
        except asyncio.CancelledError as cancelled:
            task = asyncio.current_task()
            if task is None or self._is_cancelled or (self._task is not None and self._task.cancelling()):
                raise
            while task.cancelling():  # the objective has cancelled the task in which it runs
                task.uncancel()
            return self._judge.raised(cancelled)
        except BaseException as error:
            if self._closes_coroutine(error):
                raise
            if scope is not None and scope.expired() and isinstance(error, TimeoutError):
                return self._timed_out_outcome()
            # GeneratorExit raised again would close this coroutine's caller.
            if GeneratorExit in (type(error), type(error.__cause__)):
                error = InvalidObjectiveError(f"`{self.objective.name}` raised GeneratorExit, which ends the search.")
                return Outcome(TrialState.FAIL, reason=reason_of(error), fatal=error, lost=True)
            return self._judge.raised(error)

    async def _returned(self, run: TrialRun) -> Any:
        returned = await self.runner.run(run)
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # the objective has cancelled its task, and has not awaited since
            await asyncio.sleep(0)  # asyncio raises the CancelledError here, where it is the trial's
        return returned

    def _timed_out_outcome(self) -> Outcome:
        if self._is_late():
            reason = f"The search's timeout of {self._timeout:g} s came while this trial ran."
            return Outcome(TrialState.FAIL, reason=reason, lost=True)
        error = TrialTimeoutError(
            f"The trial ran for longer than `trial_timeout`, {self._trial_timeout:g} s, and was stopped."
        )
        return Outcome(TrialState.FAIL, reason=reason_of(error), error=error)

    def _closes_coroutine(self, error: BaseException) -> bool:
        """Return whether an error closes this coroutine because its event loop is gone.

        A GeneratorExit that the objective has raised does not close this coroutine.
        """
        return isinstance(error, GeneratorExit) and asyncio.current_task(self._loop) is None

    async def _wait_until(self, moment: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(max(moment, self._loop.time())):
                await self._wake.wait()

    async def _abandon(self, error: BaseException) -> None:
        """Cancel all running trials, and tell all trials that were asked for and not told."""
        if self.thread.is_forked:  # this process is a forked child, and the parent runs the search
            return
        self.trials.stopped = True
        self.trials.hurry()
        self._over.cancel()
        self._is_cancelled = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        reason = f"The search ended while this trial ran: {reason_of(error)}"[:REASON_LIMIT]
        if isinstance(error, asyncio.CancelledError):
            reason = "The search was cancelled while this trial ran."
        await self._tell_open(reason, patience=pauses.code_at_end)

    async def _tell_open(self, reason: str, patience: float = math.inf) -> None:
        """Tell the study how the trials that are still open have ended, unless `suspend` was called.

        Args:
            patience: For how many seconds the sampler, the pruner and the callbacks are waited for.
        """
        if self._suspended:
            return
        self._end_asks()
        closing, other = self.thread.run(self.trials.close_open, reason), Threads(limit=1)
        until = self._loop.time() + patience
        while not closing.done():
            await asyncio.wait([closing], timeout=pauses.silence_check)
            if not closing.done() and self.trials.silence > pauses.storage_silence:
                raise self.trials.give_up()
            if self._loop.time() > until and not self.trials.silence and not self.trials.is_closing:
                logger.warning(
                    "The search over `%s` ends without its sampler or a callback, which has not returned for %g s.",
                    self.objective.name,
                    patience,
                )
                closing = other.run(functools.partial(self.trials.close_open, reason, waits=False))
                until = math.inf
        await other.close()
        closing.result()

    def _end_asks(self) -> None:
        """Let no thread of a trial tell it or ask for another one, and wait for one that does so now."""
        self.trials.stopped = True
        if self.trials.is_quick:
            self._gate.close()

    def _close_in_this_thread(self) -> None:
        """Tell the study how the open trials have ended, if an interrupt or the loop's end broke off `_abandon`."""
        if not self._suspended and not self.thread.is_forked:
            self._end_asks()
            self.trials.close_open("The search was interrupted while this trial ran.", waits=False)
