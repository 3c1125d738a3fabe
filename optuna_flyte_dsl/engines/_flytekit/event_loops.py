"""Runs flytekit's coroutines in the thread that waits for them, and closes the event loops that flytekit has made.

By itself, flytekit runs the coroutines of each thread in the event loop of a second thread. Flytekit never ends the
second thread. Each call in a new thread switches threads three times, and leaves a thread and an event loop behind. A
SystemExit or a KeyboardInterrupt in such an event loop ends the second thread, and the first one waits for ever.
"""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from optuna_flyte_dsl._compat import flytekit as compat
from optuna_flyte_dsl._threads import Threads, in_event_loop


class _OwnLoop:
    """Replaces flytekit's runner of a thread. The replacement runs coroutines in the calling thread itself."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._nested: Threads | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if not in_event_loop():
            return self._runner.get_loop().run_until_complete(coroutine)
        # A coroutine has called a sync function, which waits for another coroutine.
        self._nested = self._nested or threads_with_own_loops(limit=1)
        return self._nested.start(lambda: compat.runner_of(threading.current_thread().name).run(coroutine)).result()

    def close(self) -> None:
        if self._nested is not None:
            self._runner.run(self._nested.close())
        self._runner.close()


def threads_with_own_loops(limit: int | None = None) -> Threads:
    """Return threads in which flytekit runs coroutines in the calling thread itself."""
    return Threads(limit, at_start=use_own_loop, at_exit=close_loops)


def use_own_loop() -> None:
    """Make flytekit run the coroutines of the calling thread in that thread."""
    name = threading.current_thread().name
    if compat.runner_of(name) is None:
        compat.set_runner(name, _OwnLoop())


def outlive_exit(thread: threading.Thread) -> None:
    """Make a flytekit thread run its own coroutines, so that the thread can end when Python exits.

    At Python's exit, flytekit stops the loops that it keeps for threads, and then joins the thread of its `Controller`.
    If the `Controller`'s thread is publishing the Deck, that thread would wait for ever for a stopped event loop, and
    the pod would never end.
    """
    if not isinstance(compat.runner_of(thread.name), _OwnLoop):
        compat.set_runner(thread.name, _OwnLoop())


def close_loops(thread_name: str) -> None:
    """Close the event loops that were made for a thread that ends, and its connection to flytekit's local cache."""
    compat.close_cache_connection()
    for runner in reversed(compat.pop_runners(thread_name)):
        if isinstance(runner, _OwnLoop):
            runner.close()
        else:
            compat.stop_runner(runner)
