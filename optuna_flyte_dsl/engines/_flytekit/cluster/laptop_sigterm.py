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
        self._is_ending = False  # from SIGTERM until the last search has ended
        self._pid = os.getpid()

    def install(self) -> None:
        """Handle SIGTERM from now on, unless the program handles it. Only the main thread can install a handler."""
        if os.getpid() != self._pid:  # a forked child runs none of its parent's searches
            self._pid, self._is_ending = os.getpid(), False
            self._searches.clear()
        if _in_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def enter(self) -> None:
        """Note the search that runs in the current task.

        Raises:
            asyncio.CancelledError: After SIGTERM, while other searches are still ending.
        """
        self.install()
        task = asyncio.current_task()
        assert task is not None
        self._searches.add((asyncio.get_running_loop(), task))
        if self._is_ending:
            self.leave()
            raise asyncio.CancelledError("This process has got SIGTERM: it begins no other search.")

    def leave(self) -> None:
        """Note the end of the search of the current task. After SIGTERM, the end of the last one ends the process.

        Raises:
            SystemExit: In another thread than the main thread.
        """
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._searches.discard((loop, task))
        if not self._is_ending or self._searches:
            return
        if _in_main_thread():
            # A callback of the event loop raises the error: raised in the task, another cancellation could replace it.
            self._is_ending = False
            loop.call_soon(_exit)
        else:
            os.kill(os.getpid(), signal.SIGTERM)  # ends the main thread; the error ends this thread alone
            _exit()

    def _on_sigterm(self, number: int, _: Any) -> None:
        was_ending, self._is_ending = self._is_ending, True  # first: meanwhile, another thread's search may end
        if os.getpid() == self._pid and self._searches:
            for loop, task in list(self._searches):
                with contextlib.suppress(RuntimeError):  # the event loop is closed
                    loop.call_soon_threadsafe(task.cancel)
            return
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() == self._pid and was_ending:  # the last search has ended, in another thread
            self._is_ending = False
            _exit()
        os.kill(os.getpid(), number)


def _exit() -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


laptop_sigterm = LaptopSigterm()
"""The searches of this process with trials on a cluster of a remote."""
