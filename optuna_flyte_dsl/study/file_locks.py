"""Locks of files, which the operating system frees when their process ends."""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

from optuna.storages import BaseStorage

from optuna_flyte_dsl._compat.optuna import engine_of, journal_lock_of

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class FileLock:
    """A lock of a journal file, held while lines are appended.

    Optuna takes this lock as a `lock_obj` of its journal file.

    When a process is killed, the operating system frees this lock at once. Optuna's own lock file would stay behind,
    and hold up the next process. A line that a killed process has written in part is removed: it was never
    acknowledged, and the next line would be appended to it.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._thread = threading.Lock()
        self._file: Any = None

    def acquire(self) -> bool:
        """Wait for the lock, and remove a partial last line."""
        self._thread.acquire()
        try:
            self._file = self.path.open("r+b")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            _remove_partial_line(self._file)
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        """Release the lock."""
        file, self._file = self._file, None
        try:
            if file is not None:
                _unlock(file)
                file.close()
        finally:
            self._thread.release()


class ClaimsFile:
    """A lock that excludes other searches on a file's studies while a search looks at a study and asks for a trial.

    The lock is on an empty file beside the storage's file: Optuna and SQLite lock the storage's file themselves.

    Args:
        path: The file of a journal or of a SQLite database.

    Raises:
        OSError: If the file system has no such locks.
    """

    def __init__(self, path: pathlib.Path) -> None:
        if fcntl is None:
            raise OSError("this system has no flock")
        self._path = path.with_name(f"{path.name}.claims")
        with self._opened() as file, contextlib.suppress(BlockingIOError):  # another search holds the lock
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @contextlib.contextmanager
    def exclusive(self, _name: str = "") -> Iterator[None]:
        """Wait for the lock, and hold it."""
        with self._opened() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        file = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o644)
        locked_files.add(file)
        try:
            yield file
        finally:
            locked_files.discard(file)
            _unlock(file)
            os.close(file)


def _unlock(file: Any) -> None:
    """Release a lock. Closing the file does not release the lock while a forked child has the file open."""
    fcntl.flock(file, fcntl.LOCK_UN)


locked_files: set[int] = set()
"""Descriptors of the files that this process holds locked. A forked child closes them, to not keep the locks."""


def _close_in_child() -> None:
    for file in locked_files:
        with contextlib.suppress(OSError):
            os.close(file)
    locked_files.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def file_of(storage: BaseStorage) -> pathlib.Path | None:
    """Return the path of a journal file or a SQLite database, without symbolic links; `None` for other storages."""
    journal = lock_of_journal(storage)
    if journal is not None:
        return journal.path.resolve()
    url = getattr(engine_of(storage), "url", None)
    path = str(getattr(url, "database", None) or "")
    if url is None or url.get_backend_name() != "sqlite" or not path or path.startswith((":", "file:")):
        return None
    if not os.path.isabs(path):  # ask SQLite, since the working directory may have changed
        with engine_of(storage).connect() as connection:
            path = connection.exec_driver_sql("PRAGMA database_list").all()[0][2]
    return pathlib.Path(path).resolve()


def lock_of_journal(storage: BaseStorage) -> FileLock | None:
    """Return the `FileLock` of a storage's journal file; `None` for other storages."""
    lock = journal_lock_of(storage)
    return lock if isinstance(lock, FileLock) else None


def _remove_partial_line(file: Any) -> None:
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
