"""Runs a coroutine from sync code, in a script or in a notebook."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from optuna_flyte_dsl._threads import in_event_loop

T = TypeVar("T")
_SIGNAL_CHECK = 0.1
"""The seconds between two checks for signals. Python runs signal handlers in the main thread only, and a signal that
comes just before the main thread waits for a lock, or that another thread gets, does not wake the main thread.
"""


def wait_for(
    coroutine: Coroutine[Any, Any, T], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> T:
    """Run a coroutine to its end from sync code, whether or not an event loop runs in this thread.

    Args:
        loop_factory: Makes the event loop in which the coroutine runs; by default asyncio makes it.
    """
    return _wait_in_thread(coroutine, loop_factory) if in_event_loop() else _run(coroutine, loop_factory)


def _run(coroutine: Coroutine[Any, Any, T], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None) -> T:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(coroutine)


def _wait_in_thread(
    coroutine: Coroutine[Any, Any, T], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None
) -> T:
    result: concurrent.futures.Future[T] = concurrent.futures.Future()
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []
    interrupted = threading.Event()

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None
        started.append((asyncio.get_running_loop(), task))
        if interrupted.is_set():
            coroutine.close()
            raise asyncio.CancelledError
        return await coroutine

    def run() -> None:
        try:
            result.set_result(_run(main(), loop_factory))
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            result.set_exception(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="optuna-flyte-run-sync")
    handler = signal.getsignal(signal.SIGINT)
    # `asyncio.run` handles Ctrl-C by cancelling its task, but that task is blocked in this function.
    is_asyncios = isinstance(getattr(getattr(handler, "func", None), "__self__", None), asyncio.Runner)
    is_asyncios = is_asyncios and threading.current_thread() is threading.main_thread()
    if is_asyncios:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    thread.start()
    try:
        _wait_until_done(result)
    except BaseException:
        interrupted.set()
        for loop, task in started:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the coroutine has just ended
                loop.call_soon_threadsafe(task.cancel)
        _wait_until_done(result)
        raise
    finally:
        if is_asyncios:
            signal.signal(signal.SIGINT, handler)
    return result.result()


def _wait_until_done(future: concurrent.futures.Future[Any]) -> None:
    """Wait, and handle signals meanwhile, those too that come just before the wait or to another thread."""
    while concurrent.futures.wait([future], _SIGNAL_CHECK).not_done:
        pass
