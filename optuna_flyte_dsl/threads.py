"""Threads for work that blocks: made when all others are busy, used again when idle, never waited for at exit."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import heapq
import itertools
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_Job = Callable[[], Callable[[], None]]
"""What a thread runs. It returns what hands over the result: the thread is free again by then."""


class StillRunningError(Exception):
    """A function runs longer than it is waited for."""


class _Names:
    """Hands out thread names, the smallest free number first. Flytekit keeps an event loop for each name it meets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[int] = []
        self._new = itertools.count()

    def take(self) -> int:
        with self._lock:
            return heapq.heappop(self._free) if self._free else next(self._new)

    def give_back(self, number: int) -> None:
        with self._lock:
            heapq.heappush(self._free, number)


_names = _Names()
_this = threading.local()


class Threads:
    """Runs functions in daemon threads, for any event loop.

    A pool of the standard library has a fixed size, in which nested searches deadlock; it joins its threads when the
    interpreter exits, so that one hanging trial hangs the program; and its threads have names that are not used again.

    Args:
        limit: The largest number of threads; `None` for as many as there are jobs. With 1, jobs run in their order.
        at_exit: Called in each thread, with its name, when it ends.
    """

    def __init__(self, limit: int | None = None, at_exit: Callable[[str], None] | None = None) -> None:
        self._limit = limit
        self._at_exit = at_exit
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: set[threading.Thread] = set()
        self._busy: set[threading.Thread] = set()
        self._idle = 0
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nothing can be run any more."""
        return self._closed

    @property
    def busy(self) -> bool:
        """Whether a function runs."""
        return bool(self._busy)

    def run(self, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Start a function in a thread, under a copy of the caller's context.

        Args:
            function: What to run.
            *args: Its arguments.

        Returns:
            A future of the running loop. Cancelling it does not stop the function.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def job() -> Callable[[], None]:
            try:
                value, error = context.run(function, *args), None
            except BaseException as raised:  # noqa: BLE001 - the awaiting side gets it, whatever it is
                value, error = None, _settable(raised)
            return lambda: _deliver(loop, future, value, error)

        self._add(job)
        return future

    def call(self, function: Callable[[], T], seconds: float) -> T:
        """Run a function in a thread, under a copy of the caller's context, and wait for it in this one.

        Args:
            function: What to run.
            seconds: How long to wait.

        Raises:
            StillRunningError: If it runs longer; it runs on.
        """
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        context = contextvars.copy_context()

        def job() -> Callable[[], None]:
            try:
                value = context.run(function)
            except BaseException as raised:  # noqa: BLE001 - the waiting side gets it, whatever it is
                return functools.partial(future.set_exception, raised)
            return functools.partial(future.set_result, value)

        self._add(job)
        if concurrent.futures.wait([future], seconds).not_done:
            raise StillRunningError
        return future.result()

    def _add(self, job: Callable[[], Callable[[], None]]) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("These threads are closed.")
            if self._idle:
                self._idle -= 1
            elif self._limit is None or len(self._threads) < self._limit:
                self._start_thread()
            self._jobs.put(job)

    async def close(self) -> None:
        """End the threads. Waits for those that are idle; one that is busy ends when its function returns."""
        with self._lock:
            self._closed = True
            threads = set(self._threads)
            for _ in threads:
                self._jobs.put(None)
        # A thread sets no event after its very last step, so it is looked at.
        while any(thread.is_alive() and thread not in self._busy for thread in threads):  # noqa: ASYNC110
            await asyncio.sleep(0.0005)

    def _start_thread(self) -> None:
        number = _names.take()
        thread = threading.Thread(target=self._work, args=(number,), name=f"optuna-flyte-{number}", daemon=True)
        try:
            thread.start()
        except BaseException:
            _names.give_back(number)
            raise
        self._threads.add(thread)

    def _work(self, number: int) -> None:
        thread = threading.current_thread()
        _this.is_own = True
        try:
            while (job := self._jobs.get()) is not None:
                with self._lock:
                    self._busy.add(thread)
                deliver = job()
                del job
                with self._lock:
                    self._busy.discard(thread)
                    if self._limit is None:
                        self._idle += 1
                deliver()
                del deliver
        finally:
            if self._at_exit is not None:
                self._at_exit(thread.name)
            with self._lock:
                self._threads.discard(thread)
            _names.give_back(number)


def is_own_thread() -> bool:
    """Tell whether the caller runs in a thread that was made here."""
    return getattr(_this, "is_own", False)


async def insist(closing: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Await something to its end, and anew when it is cancelled, however often the caller is cancelled meanwhile."""
    while True:
        task = asyncio.ensure_future(closing())
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            return task.result()  # type: ignore[no-any-return]


def _settable(error: BaseException) -> BaseException:
    """Return an error that a future takes: it refuses StopIteration, as a coroutine does."""
    if not isinstance(error, StopIteration):
        return error
    substitute = RuntimeError(f"The function raised {error!r}.")
    substitute.__cause__ = error
    return substitute


def _deliver(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], value: Any, error: BaseException | None
) -> None:
    def settle() -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
        loop.call_soon_threadsafe(settle)
