"""Opens the storage that the option `storage` names, and refuses files and folders that cannot be a storage."""

import contextlib
import errno
import functools
import gc
import json
import multiprocessing
import os
import pathlib
import random
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from optuna_flyte_dsl import _option_checks as check
from optuna_flyte_dsl._compat.optuna import create_missing_indexes
from optuna_flyte_dsl._compat.optuna_journal import GatheringJournalStorage, bytes_read
from optuna_flyte_dsl._foreign_errors import is_no_database, is_race_for_tables, is_wrong_url
from optuna_flyte_dsl._retry import retry
from optuna_flyte_dsl._text import nearest, shown
from optuna_flyte_dsl.errors import InvalidOptionError, OptunaFlyteError
from optuna_flyte_dsl.options import StorageOption
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.study.file_locks import FileLock, fcntl

_OPENING_TRIES = 5
_STORABLE = (type(None), bool, int, float, str)
_DATABASES = ("sqlite", "postgresql", "mysql", "mariadb", "oracle", "mssql")
"""The databases that SQLAlchemy knows, by the names in their URLs."""


def is_kept(storage: BaseStorage) -> bool:
    """Return whether a storage may outlive this process, or be used by other processes too."""
    return not isinstance(storage, InMemoryStorage)


def check_choices(space: SearchSpace) -> None:
    """Check that a storage which outlives this process gives each choice of a space back as it is."""
    for name, marker in space.items():
        named = getattr(marker, "names", None) is not None
        choices = () if named else getattr(marker, "choices", ())
        wrong = [each for each in choices if not isinstance(each, _STORABLE)]
        if wrong:
            raise InvalidOptionError(
                f"`{name}`: a storage keeps choices that are None, bool, int, float or str, but got {shown(wrong[0])}, "
                f'of type {type(wrong[0]).__name__}. Give the choices names: `Category({{"a": ...}})`.'
            )


def preload_database(storage: StorageOption) -> None:
    """Load the database driver of a storage's URL, so that the import does not block an event loop later.

    The imports themselves are quick; the full garbage collection that they cause is slow, because it walks over all
    objects. A worker process loads no driver, because it may not need a driver.
    """
    if isinstance(storage, str) and "://" in storage and multiprocessing.parent_process() is None:
        _preload_driver(storage.partition("://")[0])


@functools.cache
def _preload_driver(scheme: str) -> None:
    with contextlib.suppress(Exception):  # a missing driver is reported when the search opens the storage
        import sqlalchemy

        optuna.storages.RDBStorage("sqlite:///:memory:").engine.dispose()
        sqlalchemy.make_url(f"{scheme}://").get_dialect().import_dbapi()
    gc.collect()


def open_storage(storage: StorageOption) -> BaseStorage:
    """Open a storage. `open_storage` may block."""
    if isinstance(storage, os.PathLike) or (isinstance(storage, str) and "://" not in storage):
        check.storage("storage", storage)
        return _open_journal(pathlib.Path(storage))
    if isinstance(storage, str):
        check.storage("storage", storage)  # a URL that a user's function returned is unchecked
        _check_sqlite_folder(storage)
        # Another process may create the database's tables at the same time.
        waits = (random.uniform(0.1, 0.5) for _ in range(_OPENING_TRIES))  # noqa: S311 - not a secret
        try:
            return retry(lambda: _open_database(storage), waits, may_pass=is_race_for_tables)
        except Exception as error:
            if is_no_database(error):
                raise InvalidOptionError(
                    f"`storage`: the file of {storage!r} exists, and is no SQLite database. Give the URL of a new file."
                ) from error
            if is_wrong_url(error):
                scheme = storage.partition("://")[0].partition("+")[0]
                near = nearest(scheme, _DATABASES)
                cure = (
                    f"Did you mean '{near}://...'?"
                    if near not in (None, scheme)
                    else "Install the database's driver and name it in the URL, as in "
                    "'postgresql+psycopg://user:password@host/name' after `pip install 'psycopg[binary]'`."
                )
                raise InvalidOptionError(
                    f"`storage` must be a URL for which SQLAlchemy has a driver here: {str(error).rstrip('.')}. {cure}"
                ) from error
            raise
    made = storage if isinstance(storage, BaseStorage) else storage() if storage is not None else None
    if isinstance(made, str | os.PathLike):
        return open_storage(made)
    if not isinstance(made, BaseStorage):
        cure = " Is the environment variable set from which it reads the URL?" if made is None else ""
        raise InvalidOptionError(
            f"`storage` must make a storage of Optuna's, a URL or a path, but it made a {type(made).__name__}.{cure}"
        )
    return optuna.storages.get_storage(made)


def _open_database(url: str) -> BaseStorage:
    storage = optuna.storages.get_storage(url)
    create_missing_indexes(storage)
    return storage


def _open_journal(path: pathlib.Path) -> BaseStorage:
    if path.is_dir():
        raise InvalidOptionError(
            f"`storage` must be the path of a journal file, but {str(path)!r} is a folder. Name a file in it, as "
            f"in {str(path / 'search.journal')!r}."
        )
    if not path.absolute().parent.is_dir():
        raise InvalidOptionError(
            f"`storage` must be the path of a journal file in a folder that exists, but got {str(path)!r}. "
            + (
                f"Python does not expand '~': write `pathlib.Path({str(path)!r}).expanduser()`."
                if str(path).startswith("~")
                else "Make the folder first. A URL has '://' in it, as in 'sqlite:///study.db'."
            )
        )
    if path.exists():
        if not path.is_file():
            raise InvalidOptionError(
                f"`storage` must be the path of a journal file, but {str(path)!r} is a device or a pipe. Give the path "
                "of a new file."
            )
        with path.open("rb") as file:
            first = file.readline()
        if first and not first.startswith(b'{"op_code":'):
            # `FileLock` would cut off the file's partial last line, and the search would append to the file.
            raise InvalidOptionError(
                f"`storage`: the file {str(path)!r} exists, and is no journal of Optuna's. Give the path of a new "
                "file; or, for a SQLite database, its URL, as in 'sqlite:///study.db'."
            )
    path = path.absolute()  # a trial may change the working directory
    lock = FileLock(path) if fcntl is not None else JournalFileOpenLock(str(path))
    return GatheringJournalStorage(_Journal(str(path), lock_obj=lock))


class _Journal(JournalFileBackend):
    """Optuna's journal file backend, with errors that name the file, and the damaged line.

    Optuna's own would read nothing from a file that was cut short, and raise a TypeError at some later call.
    """

    def __init__(self, file_path: str, lock_obj: Any) -> None:
        super().__init__(file_path, lock_obj)
        self._name = file_path

    def read_logs(self, log_number_from: int) -> Any:
        """Read the lines from a number on, as Optuna's file backend does."""
        self._check_whole()
        try:
            yield from super().read_logs(log_number_from)
        except ValueError as error:
            raise OptunaFlyteError(
                f"The journal file {self._name!r} is damaged in line {self._damaged_line()}: {error}. Copy it, and "
                "remove the line from the copy; or give another `storage`."
            ) from error

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines, as Optuna's file backend does."""
        self._check_whole()
        super().append_logs(logs)

    def _check_whole(self) -> None:
        if os.path.getsize(self._name) < bytes_read(self):
            raise FileNotFoundError(errno.ENOENT, "the journal was emptied or cut short while it was used", self._name)

    def _damaged_line(self) -> int:
        good = 0
        with contextlib.suppress(ValueError), open(self._name, "rb") as file:
            for line in file:
                json.loads(line)
                good += 1
        return good + 1


def _check_sqlite_folder(url: str) -> None:
    path = url.partition(":///")[2].partition("?")[0] if url.startswith("sqlite") else ""
    if path and not path.startswith((":", "file:")) and not pathlib.Path(path).absolute().parent.is_dir():
        raise InvalidOptionError(
            f"`storage` must be a SQLite file in a folder that exists, but got {path!r}. Make the folder first."
        )
