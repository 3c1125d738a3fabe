"""Lets an async function call what blocks: its task waits for it, and the event loop goes on.

`trial.report` and its like are plain functions. An async objective calls them in the event loop: with a database far
away, each call would hold up all other trials. So such an objective runs in greenlets: what is about to block leaves
the function as it stands, runs in a thread while the task awaits it, and hands its result back. SQLAlchemy's asyncio
extension does the same for its own calls:
https://docs.sqlalchemy.org/en/20/orm/extensions/asyncio.html
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

from optuna_flyte_dsl.threads import Threads

T = TypeVar("T")


class _Step(greenlet):
    """What a coroutine does between two awaits.

    Args:
        run: Does it.
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        super().__init__(run)
        self.gr_context = getcurrent().gr_context  # what it sets in context variables is the task's
        self.task = asyncio.current_task()


class Patient:
    """Awaits a coroutine whose calls by `in_thread` run in threads.

    Args:
        coroutine: The coroutine. What it awaits in tasks of its own is not reached.
        threads: Where the calls run.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], threads: Threads) -> None:
        self._coroutine = coroutine
        self._threads = threads

    def __await__(self) -> Generator[Any, Any, Any]:
        go_on = functools.partial(self._coroutine.send, None)
        while True:
            over, awaited = yield from self._run_step(go_on)
            if over:
                return awaited
            try:
                go_on = functools.partial(self._coroutine.send, (yield awaited))
            except BaseException as error:  # noqa: BLE001 - it is the coroutine's
                go_on = functools.partial(self._coroutine.throw, error)

    def _run_step(self, go_on: Callable[[], Any]) -> Generator[Any, Any, tuple[bool, Any]]:
        """Return whether the coroutine has returned, and what; or what it awaits."""
        step = _Step(functools.partial(_step, go_on))
        made = step.switch()
        while not step.dead:
            try:
                result = yield from self._threads.run(made).__await__()
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                made = step.throw(error)
            else:
                made = step.switch(result)
        over_and_value: tuple[bool, Any] = made
        return over_and_value


def _step(go_on: Callable[[], Any]) -> tuple[bool, Any]:
    try:
        return False, go_on()
    except StopIteration as stop:
        return True, stop.value


def in_thread(call: Callable[[], T]) -> T:
    """Call what blocks: in a thread, where an async objective has called, and its task can wait for it."""
    step = getcurrent()
    # An eager task runs its first step within that of the task that has made it.
    if not isinstance(step, _Step) or step.task is not asyncio.current_task():
        return call()
    assert step.parent is not None
    result: T = step.parent.switch(call)
    return result
