"""Daemon threads for blocking work: started when all are busy, reused when idle, never joined at Python's exit."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import heapq
import itertools
import os
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from optuna_flyte_dsl._text import shown

T = TypeVar("T")
_Job = Callable[[], Callable[[], None]]
"""A job. The job returns a callback that delivers the result once the thread is idle."""


class StillRunningError(Exception):
    """Raised when a function runs for longer than its caller waits."""


class _Names:
    """Hands out thread numbers, the smallest free one first. Flytekit keeps an event loop for each thread name."""

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


_END = 0.0005  # seconds for which the end of a thread is waited for before other tasks of the event loop run

_names = _Names()
_this_thread = threading.local()


class Threads:
    """Runs functions in daemon threads. A caller may await a function in any event loop.

    Python's `ThreadPoolExecutor` is unsuitable for three reasons. A `ThreadPoolExecutor` has a fixed size, so nested
    searches deadlock. Python joins the threads of a `ThreadPoolExecutor` at exit, so one hanging trial hangs the
    program. A new `ThreadPoolExecutor` gives its threads new names, and flytekit keeps an event loop for each name.

    Args:
        limit: The largest number of threads. With `None` there is no limit: a job for which no thread is idle gets a
            new one. With 1, jobs run in the order in which they were started.
        at_start: Called in each thread when it starts.
        at_exit: Called in each thread when it ends, with the thread's name.
    """

    def __init__(
        self,
        limit: int | None = None,
        at_start: Callable[[], None] | None = None,
        at_exit: Callable[[str], None] | None = None,
    ) -> None:
        self._limit = limit
        self._at_start = at_start
        self._at_exit = at_exit
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: set[threading.Thread] = set()
        self._busy: set[threading.Thread] = set()
        self._idle = 0
        self._closed = False
        self._pid = os.getpid()

    @property
    def is_forked(self) -> bool:
        """Whether this process is a forked child of the process that has the threads."""
        return os.getpid() != self._pid

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def busy(self) -> bool:
        """Whether a function is running."""
        return bool(self._busy)

    def run(self, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Start a function in a thread, under a copy of the caller's context variables.

        Returns:
            A future of the running event loop. Cancelling the future does not stop the function.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def job() -> Callable[[], None]:
            try:
                value, error = context.run(function, *args), None
            except BaseException as raised:  # noqa: BLE001 - the awaiting side gets it
                value, error = None, _settable(raised)
            return lambda: _deliver(loop, future, value, error)

        self._add(job)
        return future

    def call(self, function: Callable[[], T], seconds: float) -> T:
        """Run a function in a thread, under a copy of the caller's context variables, and wait for its result.

        Raises:
            StillRunningError: If the function runs for longer than so many seconds.
        """
        future = self.start(function)
        if concurrent.futures.wait([future], seconds).not_done:
            raise StillRunningError
        return future.result()

    def start(self, function: Callable[[], T]) -> concurrent.futures.Future[T]:
        """Start a function in a thread, under a copy of the caller's context variables."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        context = contextvars.copy_context()

        def job() -> Callable[[], None]:
            try:
                value = context.run(function)
            except BaseException as raised:  # noqa: BLE001 - the waiting side gets it
                return functools.partial(future.set_exception, raised)
            return functools.partial(future.set_result, value)

        self._add(job)
        return future

    def _add(self, job: _Job) -> None:
        with self._lock:
            if self._closed or self.is_forked:
                raise RuntimeError("These threads are closed, or are those of the process that has forked this one.")
            if self._idle:
                self._idle -= 1
            elif self._limit is None or len(self._threads) < self._limit:
                self._start_thread()
            self._jobs.put(job)

    async def close(self) -> None:
        """End the threads, and wait for the idle ones. A busy thread ends when its function returns."""
        if self.is_forked:
            return
        with self._lock:
            self._closed = True
            threads = set(self._threads)
            for _ in threads:
                self._jobs.put(None)
        for thread in threads:
            # A thread cannot signal anything after its very last step. An idle one ends within some microseconds.
            while thread.is_alive() and thread not in self._busy:
                thread.join(_END)
                if thread.is_alive():
                    await asyncio.sleep(_END)

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name="optuna-flyte", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except BaseException:  # an interrupt may have come after the thread had started, which then ends at once
            self._threads.discard(thread)
            raise

    def _work(self) -> None:
        thread = threading.current_thread()
        with self._lock:
            if thread not in self._threads:
                return
        number = _names.take()
        thread.name = f"optuna-flyte-{number}"
        _this_thread.is_own = True
        try:
            if self._at_start is not None:
                self._at_start()
            while (job := self._jobs.get()) is not None:
                with self._lock:
                    self._busy.add(thread)
                deliver = job()
                if self.is_forked:  # the function has forked, and this is the child, in which nobody waits
                    os._exit(0)
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


def in_event_loop() -> bool:
    """Return whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def in_own_thread() -> bool:
    """Return whether the caller runs in a thread of a `Threads`."""
    return getattr(_this_thread, "is_own", False)


async def finish(closing: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Await `closing()` to its end, even if the caller is cancelled.

    While `finish` waits, cancelling the caller has no effect. If the task of `closing()` is itself cancelled, it is
    called anew: `asyncio.run` cancels all tasks when an interrupt has ended its main task.
    """
    while True:
        task = asyncio.ensure_future(closing())
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue
        if not task.cancelled() or not task.cancelling():  # something that it waits for was cancelled, for good
            return task.result()  # type: ignore[no-any-return]


def _settable(error: BaseException) -> BaseException:
    """Return the error itself, or a RuntimeError in its place if an asyncio future would refuse the error.

    A future refuses StopIteration, and an error whose `__class__` raises. GeneratorExit would close the coroutine that
    awaits the future.
    """
    with contextlib.suppress(Exception):
        if not isinstance(error, StopIteration | GeneratorExit):
            return error
    substitute = RuntimeError(f"The function raised {shown(error)}.")
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

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for the result
        loop.call_soon_threadsafe(settle)
