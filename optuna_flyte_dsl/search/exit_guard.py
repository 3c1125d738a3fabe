"""`ExitGuard`: tells the trials of a search that is still running when Python exits."""

import asyncio
import atexit
import contextlib
import signal
import threading
from collections.abc import Callable

from optuna_flyte_dsl._pauses import pauses


class ExitGuard:
    """A context manager under which Python's exit cancels the search, and waits until the search has told its trials.

    A local eager workflow runs in a daemon thread of flytekit's. Without an `ExitGuard`, a search in that thread would
    not notice that Ctrl-C ends the main thread.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, close: Callable[[], None], is_forked: Callable[[], bool]
    ) -> None:
        self._loop = loop
        self._is_forked = is_forked
        self._close = close
        self._task = asyncio.current_task()
        self._closed = threading.Event()

    def __enter__(self) -> None:
        # Exit handlers run in reverse order. Each search registers its handler when it starts, so that the handler runs
        # before flytekit's handler, which stops flytekit's event loop.
        atexit.register(self._at_exit)

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        if self._is_forked():  # this process is a forked child, and the parent runs the search
            return
        try:
            if self._task is not None and self._loop.is_running():
                self._loop.call_soon_threadsafe(self._task.cancel)
                self._closed.wait(pauses.exit_patience)
            elif self._task is not None and not self._loop.is_closed():  # `run_until_complete` was interrupted
                self._task.cancel()
                self._loop.run_until_complete(asyncio.wait([self._task], timeout=pauses.exit_patience))
        finally:
            with contextlib.suppress(ValueError):  # only the main thread may set a signal handler
                # Ctrl-C is ignored from now on: it would stop the search before its last results are stored.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._close()
