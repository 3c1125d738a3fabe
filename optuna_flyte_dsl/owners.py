"""Who runs a trial, and whether that process still lives: told by evidence, never by a clock.

A process on the same host is known by its pid and the moment of its start; one that shares a PostgreSQL database, by an
advisory lock that it holds; one in a Flyte pod, by its execution. Of others nothing is known.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import hashlib
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from optuna_flyte_dsl.journal import lock_of
from optuna_flyte_dsl.log import logger

OWNER_PREFIX = "optuna_flyte_dsl:owner:"
"""What the system attribute of a trial starts with that says who runs it; the session's name follows."""

_SAME_START = 2.0
"""Seconds by which two readings of one process's start may differ, where the system has no clock that cannot be set."""

_BEAT_SECONDS = 1.0
"""Seconds between two looks at the connection that holds a lock: one that was cut off is made anew, and locked."""

_LOCK_PATIENCE = 15.0
"""Seconds for which a lock must be free at each look: an owner that lives, and was cut off, has it back by then."""

Record = Mapping[str, Any]


class Life(enum.Enum):
    """What is known of the process that runs a trial."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


_living: set[str] = set()


class Owner:
    """One search, as the owner of the trials that it runs.

    Args:
        storage: Where the study is; on PostgreSQL, `open` takes a lock there.
        more: Evidence of other kinds, to be kept with the trials.
        judge: Tells by that evidence whether an owner lives; `None` where it does not know.
    """

    def __init__(
        self,
        storage: BaseStorage,
        more: Record | None = None,
        judge: Callable[[Record], Life | None] | None = None,
    ) -> None:
        self.session = uuid.uuid4().hex
        self._free_since: dict[str, float] = {}  # sessions whose locks are free, and since which look
        self.key = f"{OWNER_PREFIX}{self.session}"
        self._judge = judge
        self._storage = storage
        self._lock: _AdvisoryLock | None = None
        self._closed = False
        self._file = lock_of(storage)
        self._record = {**_here(), **_process(), "session": self.session, **(more or {})}
        _living.add(self.session)

    def open(self) -> Owner:
        """Let others see that it lives. It may block, and be closed meanwhile."""
        lock = self._lock = _AdvisoryLock.of(self._storage, self.session)
        if self._closed and lock is not None:
            lock.close()
        return self

    @property
    def record(self) -> dict[str, Any]:
        """What is kept with each of its trials."""
        if self._lock is None:
            return self._record
        return {**self._record, "lock": self._lock.key, "server": self._lock.server}

    @property
    def excludes(self) -> bool:
        """Whether `exclusive` keeps out all others."""
        return self._lock is not None or self._file is not None

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Keep out the other searches on a study, where its storage has a way to do it."""
        with contextlib.ExitStack() as stack:
            if self._lock is not None:
                stack.enter_context(self._lock.exclusive(name))
            elif self._file is not None:
                stack.enter_context(self._file.exclusive())
            yield

    def owns(self, trial: FrozenTrial) -> bool:
        """Tell whether a trial is its own."""
        return bool(trial.system_attrs.get(self.key))

    def life(self, trial: FrozenTrial) -> Life:
        """Tell whether the process that runs a trial lives. It may block."""
        lives = {self._life_of(trial.system_attrs[key]) for key in owners_of(trial)}
        if Life.ALIVE in lives:
            return Life.ALIVE
        return Life.DEAD if lives == {Life.DEAD} else Life.UNKNOWN

    def _life_of(self, record: Record) -> Life:
        if record.get("session") in _living:
            return Life.ALIVE
        life = _life_here(record)
        if life is Life.UNKNOWN and self._judge is not None:
            life = self._judge(record) or life
        if life is Life.UNKNOWN and self._lock is not None and "lock" in record:
            life = self._life_by_lock(self._lock, record)
        return life

    def _life_by_lock(self, lock: _AdvisoryLock, record: Record) -> Life:
        """Tell by its lock whether an owner lives: it is dead when the lock was free at each look, for long enough."""
        session, now = str(record["session"]), time.monotonic()
        life = lock.life(record)
        if life is not Life.DEAD:
            self._free_since.pop(session, None)
            return life
        since = self._free_since.setdefault(session, now)
        return Life.DEAD if now - since >= _LOCK_PATIENCE else Life.ALIVE

    def close(self) -> None:
        """Own nothing any more."""
        _living.discard(self.session)
        self._closed = True
        if self._lock is not None:
            self._lock.close()


def owners_of(trial: FrozenTrial) -> tuple[str, ...]:
    """Return the keys of who may run a trial."""
    return tuple(key for key, record in trial.system_attrs.items() if key.startswith(OWNER_PREFIX) and record)


def describe(trial: FrozenTrial) -> str:
    """Return who runs a trial, for people."""
    for key in owners_of(trial):
        record = trial.system_attrs[key]
        return f"process {record.get('pid')} on {record.get('host')}"
    return "nobody that is known"


@functools.cache
def _here() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _read("/etc/machine-id"),
        "boot": _read("/proc/sys/kernel/random/boot_id") or str(round(psutil.boot_time())),
        "space": _link("/proc/self/ns/pid"),
    }


def _read(path: str) -> str:
    try:
        return pathlib.Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return str(pathlib.Path(path).readlink())
    except OSError:
        return ""


def _process() -> dict[str, Any]:
    return {"pid": os.getpid(), "started": _started(os.getpid())}


def _started(pid: int) -> float:
    """Return the moment of a process's start: on Linux in ticks since the system's, which no clock's setting moves.

    Raises:
        psutil.NoSuchProcess: If there is no such process, or only what is left of it.
    """
    process = psutil.Process(pid)
    if process.status() == psutil.STATUS_ZOMBIE:
        raise psutil.NoSuchProcess(pid)
    stat = _read(f"/proc/{pid}/stat")
    if stat:
        # Field 22, see proc_pid_stat(5); the second one, a name in parentheses, may hold blanks.
        return float(stat.rpartition(")")[2].split()[19])
    return float(process.create_time())


def _life_here(record: Record) -> Life:
    """Tell by the pid whether a process of this host lives. In another container, the same pid is another process."""
    here = _here()
    if any(record.get(name) != here[name] for name in ("host", "machine")):
        return Life.UNKNOWN
    if record.get("boot") != here["boot"]:
        return Life.DEAD if here["machine"] else Life.UNKNOWN  # this machine was started anew
    if record.get("space") != here["space"]:
        return Life.UNKNOWN
    try:
        same = abs(_started(record["pid"]) - record["started"]) <= (0 if _read("/proc/self/stat") else _SAME_START)
        # Of this process, only the sessions that live count; they have been looked at.
        dead = not same or record["pid"] == os.getpid()
    except psutil.NoSuchProcess:
        dead = True
    except psutil.AccessDenied:
        dead = False
    return Life.DEAD if dead else Life.ALIVE


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)


class _AdvisoryLock:
    """An advisory lock of PostgreSQL's, held for a session: the server frees it when its connection is gone.

    Args:
        engine: SQLAlchemy's.
        name: The lock's.
    """

    def __init__(self, engine: Any, name: str) -> None:
        self._engine = engine
        self.key = _number(name)
        self.server = ""
        self._closed = threading.Event()
        self._connection: Any = None
        self._connect()
        self._thread = threading.Thread(target=self._beat, name="optuna-flyte-lock", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, storage: BaseStorage, name: str) -> _AdvisoryLock | None:
        """Return a lock in the database of a storage; `None` if it is none of PostgreSQL's."""
        engine = getattr(getattr(storage, "_backend", storage), "engine", None)
        dialect = getattr(getattr(engine, "dialect", None), "name", "")
        return cls(engine, name) if dialect == "postgresql" else None

    def _connect(self) -> None:
        self._connection = self._engine.connect()
        self._ask(self._connection, "SELECT pg_advisory_lock(:key)", key=self.key)
        self.server = self._server(self._connection)

    def _beat(self) -> None:
        while not self._closed.wait(_BEAT_SECONDS):
            try:
                if self._connection is None:
                    self._connect()
                else:
                    self._ask(self._connection, "SELECT 1")
            except Exception:  # noqa: BLE001 - tried again
                logger.debug("The connection that holds a search's lock is gone.", exc_info=True)
                self._drop()
        self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        with contextlib.suppress(Exception):
            if connection is not None:
                connection.invalidate()  # closed, and its locks with it; not given back to the pool
                connection.close()

    @staticmethod
    def _ask(connection: Any, statement: str, **values: Any) -> Any:
        from sqlalchemy import text

        found = connection.execute(text(statement), values).scalar()
        connection.commit()
        return found

    def _server(self, connection: Any) -> str:
        """Return what names this run of the server: one that was started anew has no locks."""
        return str(self._ask(connection, "SELECT pg_postmaster_start_time()::text"))

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        from sqlalchemy import text

        connection = self._engine.connect()
        try:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _number(name)})
            yield
        finally:
            with contextlib.suppress(Exception):  # the connection is gone, and the lock with it
                connection.close()

    def life(self, record: Record) -> Life:
        """Tell whether an owner's lock is held now."""
        with self._engine.connect() as connection:
            if not self._ask(connection, "SELECT pg_try_advisory_lock(:key)", key=record["lock"]):
                return Life.ALIVE
            self._ask(connection, "SELECT pg_advisory_unlock(:key)", key=record["lock"])
            # No lock has outlived the server.
            return Life.DEAD if self._server(connection) == record.get("server") else Life.UNKNOWN

    def close(self) -> None:
        self._closed.set()  # its thread gives back the lock; a server that does not answer holds up nobody
