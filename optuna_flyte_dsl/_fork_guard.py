"""`no_forks`: holds back the forks of this process while a large package is imported in one of its threads.

A child that is forked in the middle of an import has a half-made module, and locks that nobody releases.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator

_PATIENCE = 60.0  # seconds that a fork waits: an import may itself wait for the thread that forks


class _Guard:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._has_lock = threading.local()  # whether the forking thread has got the lock

    def before_fork(self) -> None:
        self._has_lock.here = self.lock.acquire(timeout=_PATIENCE)

    def after_in_parent(self) -> None:
        if self._has_lock.here:
            self.lock.release()

    def after_in_child(self) -> None:
        self.lock = threading.RLock()


_guard = _Guard()


@functools.cache
def _register() -> None:
    os.register_at_fork(
        before=_guard.before_fork, after_in_parent=_guard.after_in_parent, after_in_child=_guard.after_in_child
    )


@contextlib.contextmanager
def no_forks() -> Iterator[None]:
    """In the body, let other threads fork no process: their forks wait until the body has ended."""
    _register()
    with _guard.lock:
        yield
