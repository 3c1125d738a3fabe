"""Locks of a journal file that the system frees with the process: Optuna's own stay behind one that was killed."""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileOpenLock

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class FileLock:
    """Held while lines are appended: what Optuna calls a `lock_obj`.

    What a killed process has half written is cut off: no line without an end was ever acknowledged, and the next one
    would be written into it.

    Args:
        path: The journal file.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._thread = threading.Lock()
        self._file: Any = None

    def acquire(self) -> bool:
        """Wait for the lock, and mend the file."""
        self._thread.acquire()
        try:
            self._file = self._path.open("r+b")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            _mend(self._file)
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        """Give back the lock."""
        file, self._file = self._file, None
        try:
            if file is not None:
                file.close()
        finally:
            self._thread.release()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep out other processes for longer than one line, in a file beside the journal."""
        with self._path.with_name(f"{self._path.name}.claims").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def lock_for(path: pathlib.Path) -> Any:
    """Return a lock for a journal file."""
    return FileLock(path) if fcntl is not None else JournalFileOpenLock(str(path))


def lock_of(storage: BaseStorage) -> FileLock | None:
    """Return the lock of a journal file that `lock_for` has made; `None` for other storages."""
    lock = getattr(getattr(storage, "_backend", None), "_lock", None)
    return lock if isinstance(lock, FileLock) else None


def _mend(file: Any) -> None:
    """Cut off what stands behind the last end of a line."""
    end = size = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        file.truncate(end)
