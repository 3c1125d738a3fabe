"""Runs plain Python functions as objectives, in the event loop or in threads, without flytekit."""

import asyncio
import inspect
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._offload import OffloadingCoroutine
from optuna_flyte_dsl._threads import Threads
from optuna_flyte_dsl.search.runner import TrialRun, run_series
from optuna_flyte_dsl.space.objective import Kind, Objective
from optuna_flyte_dsl.study.durable_storage import DurableStorage

_warned = threading.Event()


class FunctionRunner:
    """Runs the trials of one search whose objective is a function; see `Runner`.

    Args:
        threads: The threads for sync functions and for blocking calls; by default new threads.
        in_thread: Makes what is entered around each call of a sync function, in its thread.
    """

    def __init__(
        self,
        objective: Objective,
        threads: Threads | None = None,
        in_thread: Callable[[TrialRun], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._objective = objective
        self._threads = threads or Threads()
        self._in_thread = in_thread

    async def run(self, run: TrialRun) -> Any:
        run.begin()
        objective = self._objective
        if objective.kind is Kind.ASYNC_FUNCTION:
            returned = objective.target(**objective.call_arguments(run.arguments, run.trial))
        else:
            returned = await await_thread(self._threads.run(run_series, run, self._call_in_thread))
        if (
            objective.takes_trial
            and isinstance(getattr(run.trial, "storage", None), DurableStorage)
            and inspect.iscoroutine(returned)
        ):
            returned = OffloadingCoroutine(returned, self._threads)
        while type(returned) is not float and inspect.isawaitable(returned):  # `isawaitable` is slow for a float
            returned = await returned
        return returned

    def _call_in_thread(self, run: TrialRun) -> Any:
        with self._in_thread(run):
            return self._objective.target(**self._objective.call_arguments(run.arguments, run.trial))

    @property
    def busy(self) -> bool:
        """Whether the function of a trial that was given up still runs in a thread."""
        return self._threads.busy

    async def close(self) -> None:
        await self._threads.close()


async def await_thread(running: asyncio.Future[Any]) -> Any:
    """Await a function that runs in a thread. If the trial is given up, warn once that a thread cannot be stopped."""
    try:
        return await running
    except asyncio.CancelledError:
        if running.cancelled():
            warn_of_running_thread()
        raise


def warn_of_running_thread() -> None:
    """Warn, once in a process, that the function of a trial that was given up is still running."""
    if not _warned.is_set():
        _warned.set()
        logger.warning(
            "A trial was given up, but a thread cannot be stopped: its function runs on until it returns. "
            'Write `executor="process"` where that matters.'
        )


def never_warn_of_running_threads() -> None:
    """Warn of no running thread in this process, because the process itself can be stopped."""
    _warned.set()
