"""Finds which process runs a trial, and whether that process is alive: by evidence, never by a clock.

Evidence of a process is the execution of its Flyte pod; a file that the process holds locked, on its machine or beside
the file of its storage; or an advisory lock that the process holds on a shared PostgreSQL. A process without evidence
counts as neither alive nor dead.
"""

from __future__ import annotations

import contextlib
import enum
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl.study.attributes import OWNER
from optuna_flyte_dsl.study.database_lock import AdvisoryLock
from optuna_flyte_dsl.study.file_locks import ClaimsFile, file_of
from optuna_flyte_dsl.study.session_file import SessionFiles, folder_beside

Evidence = Mapping[str, Any]


class Life(enum.Enum):
    """Whether a process is alive, as far as the evidence tells."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


_living_sessions: set[str] = set()
_process = [uuid.uuid4().hex]  # an id of this process, which knows whether each of its own sessions is alive


class Owner:
    """One search, as the owner of the trials that it runs. Making an owner may block.

    Args:
        judge: Tells by an engine's evidence whether another owner is alive; returns `None` if it does not know.
    """

    def __init__(
        self,
        storage: BaseStorage,
        evidence: Evidence | None = None,
        judge: Callable[[Evidence], Life | None] | None = None,
    ) -> None:
        self.session: str = uuid.uuid4().hex
        self.key: str = f"{OWNER}{self.session}"
        self._free_since: dict[str, float] = {}  # session -> time at which its lock was first seen free
        self._judge = judge
        self._storage = storage
        self._lock: AdvisoryLock | None = None
        self._closed = False
        self._claims: ClaimsFile | None = None
        self._path = file_of(storage)
        self._files = SessionFiles(self.session, folder_beside(self._path))
        self._evidence = {
            "host": socket.gethostname(),  # the host and the pid are for messages only
            "pid": os.getpid(),
            "process": _process[0],
            "session": self.session,
            **(evidence or {}),
        }
        self.running: set[int] = set()
        """The ids of the trials that this search has asked for and has not told."""
        _living_sessions.add(self.session)

    def open(self) -> Owner:
        """Take the locks by which other processes see that this process is alive.

        `open` blocks. While `open` runs, another thread may call `close`.
        """
        self._files.open()
        self._evidence.update(self._files.evidence)
        self._lock = AdvisoryLock.of(self._storage, self.session)
        if self._path is not None:
            with contextlib.suppress(OSError):  # the file system has no locks
                self._claims = ClaimsFile(self._path)
        if self._closed:
            self._release()
        return self

    @property
    def evidence(self) -> dict[str, Any]:
        """The evidence that is stored with each of the owner's trials."""
        if self._lock is None:
            return self._evidence
        return {**self._evidence, "lock": self._lock.key, "server": self._lock.server}

    @property
    def excludes(self) -> bool:
        """Whether the lock of `exclusive` really keeps other searches out."""
        return self._lock is not None or self._claims is not None

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Hold a lock that excludes other searches on a study, if its storage has such a lock."""
        lock = self._lock or self._claims
        with lock.exclusive(name) if lock is not None else contextlib.nullcontext():
            yield

    def owns(self, trial: FrozenTrial) -> bool:
        """Return whether this owner owns a trial."""
        return bool(trial.system_attrs.get(self.key))

    def life(self, trial: FrozenTrial) -> Life:
        """Return whether the process that runs a trial is alive. `life` blocks."""
        lives = {self._life_by_evidence(trial.system_attrs[key]) for key in owner_keys(trial)}
        if Life.ALIVE in lives:
            return Life.ALIVE
        return Life.DEAD if lives == {Life.DEAD} else Life.UNKNOWN

    def _life_by_evidence(self, evidence: Evidence) -> Life:
        if evidence.get("session") in _living_sessions:
            return Life.ALIVE
        if evidence.get("process") == _process[0]:
            return Life.DEAD
        life = (self._judge(evidence) if self._judge is not None else None) or Life.UNKNOWN
        return self._life_by_locks(evidence) if life is Life.UNKNOWN else life

    def _life_by_locks(self, evidence: Evidence) -> Life:
        """Return whether the process that owns a trial is alive, by the process's locks. One held lock proves it."""
        is_held = self._files.is_held(evidence)
        lock = self._lock if "lock" in evidence else None
        if is_held:
            return Life.ALIVE
        if is_held is None:
            return self._life_by_lock(lock, evidence) if lock is not None else Life.UNKNOWN
        # An unlocked file may be a copy, as on a cloned disk, so the lock in the database is checked too.
        in_database = lock is not None and lock.is_held(evidence["lock"], evidence.get("server"))
        return Life.ALIVE if in_database else Life.DEAD

    def _life_by_lock(self, lock: AdvisoryLock, evidence: Evidence) -> Life:
        """Return whether the process that owns a trial is alive, by the process's lock in the database.

        The process counts as dead if each check during `pauses.lock_patience` seconds has found its lock free.
        """
        session, now = str(evidence["session"]), time.monotonic()
        is_held = lock.is_held(evidence["lock"], evidence.get("server"))
        if is_held is not False:
            self._free_since.pop(session, None)
            return Life.ALIVE if is_held else Life.UNKNOWN
        since = self._free_since.setdefault(session, now)
        return Life.DEAD if now - since >= pauses.lock_patience else Life.ALIVE

    def close(self) -> None:
        """Give up all trials: from now on, other searches regard this owner as dead."""
        if self._evidence["process"] != _process[0]:
            return  # this process is a forked child: the locks are the parent's
        _living_sessions.discard(self.session)
        self._closed = True
        self._release()

    def _release(self) -> None:
        self._files.close(is_clean=not self.running)
        if self._lock is not None:
            self._lock.close()


def owner_keys(trial: FrozenTrial) -> tuple[str, ...]:
    """Return the keys of the attributes that name a trial's owners.

    Two searches that race for a trial leave two owners for a moment.
    """
    return tuple(key for key, evidence in trial.system_attrs.items() if key.startswith(OWNER) and evidence)


def describe_owner(trial: FrozenTrial) -> str:
    """Return a trial's owner as text for messages."""
    for key in owner_keys(trial):
        evidence = trial.system_attrs[key]
        return f"process {evidence.get('pid')} on {evidence.get('host')}"
    return "nobody that is known"


def _forget_in_child() -> None:
    """Forget the sessions of the parent in a forked child: the child is another process."""
    _living_sessions.clear()
    _process[0] = uuid.uuid4().hex


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
