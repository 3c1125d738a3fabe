"""A lock on PostgreSQL, which the database frees when the connection of its owner ends."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from optuna.storages import BaseStorage

from optuna_flyte_dsl._compat.optuna import engine_of
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses

_SERVER_START = "SELECT pg_postmaster_start_time()::text"


class AdvisoryLock:
    """An advisory lock of PostgreSQL, held for as long as a search runs.

    The server frees the lock when its connection ends.

    A thread keeps the connection open: if the connection was cut, the thread connects and locks again.
    """

    def __init__(self, make_engine: Callable[[], Any], name: str) -> None:
        # A connection of one of these three uses may be needed while those of the other uses are open: each has a pool
        # of its own, because the user may have allowed one connection a pool.
        self._engine, self._exclusive, self._checks = make_engine(), make_engine(), make_engine()
        self.key: int = _key(name)
        self.server: str = ""
        self._closed = threading.Event()
        self._connection: Any = None
        try:
            self._connect()
        except BaseException:
            self._drop()
            self._dispose()
            raise
        self._thread = threading.Thread(target=self._keep, name="optuna-flyte-lock", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, storage: BaseStorage, name: str) -> AdvisoryLock | None:
        """Take a lock in a storage's database; return `None` if the database is not PostgreSQL."""
        engine = engine_of(storage)
        if getattr(getattr(engine, "dialect", None), "name", "") != "postgresql":
            return None
        from sqlalchemy import create_engine

        # The lock uses no connections of the storage's pool: searches that share it would wait for each other's.
        return cls(lambda: create_engine(engine.url, pool=engine.pool.recreate()), name)

    def _connect(self) -> None:
        self._connection = self._engine.connect()
        _ask(self._connection, "SELECT pg_advisory_lock(:key)", key=self.key)
        self.server = str(_ask(self._connection, _SERVER_START))

    def _keep(self) -> None:
        while not self._closed.wait(pauses.lock_check):
            try:
                if self._connection is None:
                    self._connect()
                else:
                    _ask(self._connection, "SELECT 1")
            except Exception:  # noqa: BLE001 - tried again at the next check
                logger.debug("The connection that holds a search's lock is gone.", exc_info=True)
                self._drop()
        self._drop()
        self._dispose()

    def _dispose(self) -> None:
        for engine in (self._engine, self._exclusive, self._checks):
            engine.dispose()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        with contextlib.suppress(Exception):
            if connection is not None:
                connection.invalidate()  # close the connection, which frees its locks, instead of pooling it
                connection.close()

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Hold a lock that excludes other searches on a study while several statements are executed."""
        from sqlalchemy import text

        connection = self._exclusive.connect()
        try:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _key(name)})
            yield
        finally:
            with contextlib.suppress(Exception):  # the connection is gone, and the lock with it
                connection.close()

    def is_held(self, key: int, server: str | None) -> bool | None:
        """Return whether a process holds a lock; `None` if a restart of the server has freed the lock."""
        with self._checks.connect() as connection:
            if not _ask(connection, "SELECT pg_try_advisory_lock(:key)", key=key):
                return True
            _ask(connection, "SELECT pg_advisory_unlock(:key)", key=key)
            return False if _ask(connection, _SERVER_START) == server else None

    def close(self) -> None:
        """Ask the thread to release the lock, without waiting for it: the server may not answer."""
        self._closed.set()


def _ask(connection: Any, statement: str, **values: Any) -> Any:
    from sqlalchemy import text

    found = connection.execute(text(statement), values).scalar()
    connection.commit()
    return found


def _key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
