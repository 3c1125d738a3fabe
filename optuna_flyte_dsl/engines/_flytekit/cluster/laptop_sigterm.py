"""Ends the searches of this process at SIGTERM, where no pod does it: on a laptop, in a script or in a notebook."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from typing import Any


class LaptopSigterm:
    """Cancels all searches of this process at SIGTERM, as Ctrl-C does, so that they terminate their executions.

    Without a handler, SIGTERM would end the process and leave executions running. The handler stays until the process
    ends: without a running search, the handler does what the system does by default.
    """

    def __init__(self) -> None:
        # A set has no lock: a signal handler could interrupt the lock's holder, and hang.
        self._searches: set[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = set()
        self._got_sigterm = False
        self._pid = os.getpid()

    def install(self) -> None:
        """Handle SIGTERM from now on, unless the program handles it. Only the main thread can install a handler."""
        self._pid = os.getpid()
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def enter(self) -> None:
        """Note the search that runs in the current task."""
        self.install()
        task = asyncio.current_task()
        assert task is not None
        self._searches.add((asyncio.get_running_loop(), task))

    def leave(self) -> None:
        """Note the end of the search of the current task.

        Raises:
            SystemExit: After SIGTERM, when the last search has ended.
        """
        task = asyncio.current_task()
        assert task is not None
        self._searches.discard((asyncio.get_running_loop(), task))
        if self._got_sigterm and not self._searches:
            self._got_sigterm = False
            raise SystemExit(128 + signal.SIGTERM)

    def _on_sigterm(self, number: int, _: Any) -> None:
        if not self._searches or os.getpid() != self._pid:  # a forked child runs none of these searches
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._got_sigterm = True
        for loop, task in list(self._searches):
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(task.cancel)


laptop_sigterm = LaptopSigterm()
"""The searches of this process with trials on a cluster of a remote."""
