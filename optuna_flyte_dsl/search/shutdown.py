"""`ExitGuard`: tells the trials of a search that is still running when Python exits."""

import asyncio
import atexit
import contextlib
import signal
import threading
from collections.abc import Callable

from optuna_flyte_dsl._pauses import pauses


class ExitGuard:
    """A context in which Python's exit cancels the search, and waits until its trials are told.

    A local eager workflow runs in a daemon thread of flytekit's. When Ctrl-C ends the main thread, nothing else would
    end the search.
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
        # Registered anew for each search: exit handlers run in reverse order, and flytekit's, which stops its event
        # loop, was registered when that loop was made.
        atexit.register(self._at_exit)

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        if self._is_forked():  # the search is the parent's
            return
        try:
            if self._task is not None and self._loop.is_running():
                self._loop.call_soon_threadsafe(self._task.cancel)
                self._closed.wait(pauses.exit_patience)
            elif self._task is not None and not self._loop.is_closed():  # `run_until_complete` was interrupted
                self._task.cancel()
                self._loop.run_until_complete(asyncio.wait([self._task], timeout=pauses.exit_patience))
        finally:
            with contextlib.suppress(ValueError):  # this is not the main thread
                # Another Ctrl-C would stop the search from storing its last results.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._close()
