"""Lets an async function call blocking functions while the event loop goes on.

`trial.report` and similar methods are sync and may block, for example on a database. Called by an async objective
in the event loop, `trial.report` would hold up all other trials. So the coroutine of an async objective runs in a
greenlet. `offload(call)` switches out of that greenlet, runs `call` in a thread while the objective's asyncio task
awaits it, and switches back with the result. SQLAlchemy's asyncio extension uses greenlets in this way too:
https://docs.sqlalchemy.org/en/20/orm/extensions/asyncio.html
"""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

from optuna_flyte_dsl._threads import Threads

T = TypeVar("T")


class _Step(greenlet):
    """Runs a coroutine from one `await` to the next."""

    def __init__(self, run: Callable[[], Any]) -> None:
        super().__init__(run)
        self.gr_context = getcurrent().gr_context  # the coroutine sets context variables in its task's own context
        self.task = asyncio.current_task()


class OffloadingCoroutine:
    """Awaits a coroutine, and runs each of its calls of `offload` in a thread."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], threads: Threads) -> None:
        self._coroutine = coroutine
        self._threads = threads

    def __await__(self) -> Generator[Any, Any, Any]:
        resume = functools.partial(self._coroutine.send, None)
        while True:
            has_returned, value = yield from self._run_step(resume)
            if has_returned:
                return value
            try:
                resume = functools.partial(self._coroutine.send, (yield value))
            except BaseException as error:  # noqa: BLE001 - the coroutine gets it
                resume = functools.partial(self._coroutine.throw, error)

    def _run_step(self, resume: Callable[[], Any]) -> Generator[Any, Any, tuple[bool, Any]]:
        """Return (True, the coroutine's result), or (False, the object that it awaits)."""
        step = _Step(functools.partial(_resume, resume))
        switched = step.switch()
        while not step.dead:  # the step has switched out by `offload`: `switched` is the blocking call
            try:
                result = yield from self._threads.run(switched).__await__()
            except BaseException as error:  # noqa: BLE001 - the caller of `offload` gets it
                switched = step.throw(error)
            else:
                switched = step.switch(result)
        outcome: tuple[bool, Any] = switched
        return outcome


def _resume(resume: Callable[[], Any]) -> tuple[bool, Any]:
    try:
        return False, resume()
    except StopIteration as stop:
        return True, stop.value


def offload(call: Callable[[], T]) -> T:
    """Call a blocking function: in a thread if an `OffloadingCoroutine` is the caller, else at once in this thread."""
    step = getcurrent()
    # An eager asyncio task runs its first step inside the step of the task that creates it.
    if not isinstance(step, _Step) or step.task is not asyncio.current_task():
        return call()
    assert step.parent is not None
    result: T = step.parent.switch(call)
    return result
