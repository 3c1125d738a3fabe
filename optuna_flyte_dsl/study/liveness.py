"""Tells which process runs a trial, and whether that process is alive: by evidence, never by a clock.

The evidence is: on the same host, a pid and the moment of the process's start; on a shared PostgreSQL, an advisory lock
that the process holds; in a Flyte pod, the pod's execution. About other processes nothing is known.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import os
import pathlib
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from optuna_flyte_dsl._retry import pauses
from optuna_flyte_dsl.study.attributes import OWNER
from optuna_flyte_dsl.study.locks import AdvisoryLock, lock_of_journal

_SAME_START = 2.0
"""The seconds by which two readings of a process's start may differ, on a system whose clock can be set meanwhile."""

Evidence = Mapping[str, Any]


class Life(enum.Enum):
    """Whether a process is alive, as far as the evidence tells."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


_living_sessions: set[str] = set()


class Owner:
    """One search, as the owner of the trials that it runs.

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
        self._file = lock_of_journal(storage)
        self._evidence = {
            **_host(),
            "pid": os.getpid(),
            "started": _start_of(os.getpid()),
            "session": self.session,
            **(evidence or {}),
        }
        _living_sessions.add(self.session)

    def open(self) -> Owner:
        """Take the lock by which other processes see that this one is alive. It blocks. `close` may come meanwhile."""
        lock = self._lock = AdvisoryLock.of(self._storage, self.session)
        if self._closed and lock is not None:
            lock.close()
        return self

    @property
    def evidence(self) -> dict[str, Any]:
        """The evidence that is stored with each of the owner's trials."""
        if self._lock is None:
            return self._evidence
        return {**self._evidence, "lock": self._lock.key, "server": self._lock.server}

    @property
    def excludes(self) -> bool:
        """Whether `exclusive` really keeps out the other searches."""
        return self._lock is not None or self._file is not None

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Hold a lock that excludes other searches on a study, if its storage has such a lock."""
        lock = self._lock or self._file
        with lock.exclusive(name) if lock is not None else contextlib.nullcontext():
            yield

    def owns(self, trial: FrozenTrial) -> bool:
        """Tell whether a trial is this owner's."""
        return bool(trial.system_attrs.get(self.key))

    def life(self, trial: FrozenTrial) -> Life:
        """Tell whether the process that runs a trial is alive. It blocks."""
        lives = {self._life_by_evidence(trial.system_attrs[key]) for key in owner_keys(trial)}
        if Life.ALIVE in lives:
            return Life.ALIVE
        return Life.DEAD if lives == {Life.DEAD} else Life.UNKNOWN

    def _life_by_evidence(self, evidence: Evidence) -> Life:
        if evidence.get("session") in _living_sessions:
            return Life.ALIVE
        life = _life_by_pid(evidence)
        if life is Life.UNKNOWN and self._judge is not None:
            life = self._judge(evidence) or life
        if life is Life.UNKNOWN and self._lock is not None and "lock" in evidence:
            life = self._life_by_lock(self._lock, evidence)
        return life

    def _life_by_lock(self, lock: AdvisoryLock, evidence: Evidence) -> Life:
        """Tell by its lock whether an owner is alive. It is dead if the lock was free at each check for long enough."""
        session, now = str(evidence["session"]), time.monotonic()
        is_held = lock.is_held(evidence["lock"], evidence.get("server"))
        if is_held is not False:
            self._free_since.pop(session, None)
            return Life.ALIVE if is_held else Life.UNKNOWN
        since = self._free_since.setdefault(session, now)
        return Life.DEAD if now - since >= pauses.lock_patience else Life.ALIVE

    def close(self) -> None:
        """Give up all trials: from now on, other searches regard this owner as dead."""
        _living_sessions.discard(self.session)
        self._closed = True
        if self._lock is not None:
            self._lock.close()


def owner_keys(trial: FrozenTrial) -> tuple[str, ...]:
    """Return the keys of the attributes that name a trial's owners. Two searches that race leave two for a moment."""
    return tuple(key for key, evidence in trial.system_attrs.items() if key.startswith(OWNER) and evidence)


def describe_owner(trial: FrozenTrial) -> str:
    """Return a trial's owner as text for messages."""
    for key in owner_keys(trial):
        evidence = trial.system_attrs[key]
        return f"process {evidence.get('pid')} on {evidence.get('host')}"
    return "nobody that is known"


@functools.cache
def _host() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _read("/etc/machine-id"),
        "boot": _read("/proc/sys/kernel/random/boot_id") or str(round(psutil.boot_time())),
        "space": _read("/proc/self/ns/pid"),
    }


def _read(path: str) -> str:
    """Return the text of a file, or the target of a link; nothing if it is not there."""
    try:
        return os.readlink(path) if os.path.islink(path) else pathlib.Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _start_of(pid: int) -> float:
    """Return when a process started: on Linux in clock ticks since boot, which setting the clock does not change."""
    process = psutil.Process(pid)
    if process.status() == psutil.STATUS_ZOMBIE:
        raise psutil.NoSuchProcess(pid)
    stat = _read(f"/proc/{pid}/stat")
    if stat:
        # Field 22, see proc_pid_stat(5). Field 2, a name in parentheses, may hold blanks.
        return float(stat.rpartition(")")[2].split()[19])
    return float(process.create_time())


def _life_by_pid(evidence: Evidence) -> Life:
    """Tell by its pid whether a process of this host is alive. In another container, a pid is another process."""
    host = _host()
    if any(evidence.get(name) != host[name] for name in ("host", "machine")):
        return Life.UNKNOWN
    if evidence.get("boot") != host["boot"]:
        return Life.DEAD if host["machine"] else Life.UNKNOWN  # this machine was rebooted
    if evidence.get("space") != host["space"]:
        return Life.UNKNOWN
    try:
        tolerance = 0 if _read("/proc/self/stat") else _SAME_START
        same = abs(_start_of(evidence["pid"]) - evidence["started"]) <= tolerance
        # A session of this process that is alive has been recognized before.
        dead = not same or evidence["pid"] == os.getpid()
    except psutil.NoSuchProcess:
        dead = True
    except psutil.AccessDenied:
        dead = False
    return Life.DEAD if dead else Life.ALIVE
