"""The working directory and the checkpoint of a local call, which are made when the task asks for them.

For each local call, flytekit makes a directory with a checkpoint in it, and never removes it. In a search, what a task
has written into its directory is kept: it may be a model. The checkpoint, and a directory without a file, are removed.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Callable
from typing import Any, cast

from flytekit.core.checkpointer import SyncCheckpoint
from flytekit.core.context_manager import ExecutionParameters

from optuna_flyte_dsl._compat.flytekit import CHECKPOINT_FOLDER


class Sandboxes:
    """The directories of one attempt of a trial. The attempt, and each of its calls, runs in a `with` statement.

    When the attempt and all its calls have ended, the checkpoints are removed, and the directories that are empty then.
    A call that was given up may run for longer than its trial.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._directories: list[str] = []

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users or not self._directories:
                return
            over, self._directories = self._directories, []
        for directory in over:
            shutil.rmtree(os.path.join(directory, CHECKPOINT_FOLDER), ignore_errors=True)
            with contextlib.suppress(OSError):  # the task has written something
                os.rmdir(directory)

    def make(self, prefix: str) -> str:
        """Make a directory."""
        directory = tempfile.mkdtemp(prefix=prefix)
        with self._lock:
            self._directories.append(directory)
        return directory


_current: contextvars.ContextVar[Sandboxes] = contextvars.ContextVar("sandboxes of an attempt")


def sandboxes_of_attempt() -> Sandboxes:
    """Return new `Sandboxes`: those of the calls in this context. An attempt enters them by a `with` statement."""
    sandboxes = Sandboxes()
    _current.set(sandboxes)  # an attempt has a context of its own
    return sandboxes


def current_sandboxes() -> Sandboxes:
    """Return the directories of the attempt in whose context this is called."""
    return _current.get()


class _Sandbox:
    """The directory and the checkpoint of one call, as flytekit makes them."""

    def __init__(self, sandboxes: Sandboxes, prefix: Callable[[], str]) -> None:
        self.sandboxes = sandboxes  # kept, because a thread of the task has another context
        self._lock = threading.RLock()
        self._prefix = prefix
        self._directory: str | None = None
        self._checkpoint: SyncCheckpoint | None = None

    @property
    def directory(self) -> str:
        with self._lock:
            if self._directory is None:
                self._directory = self.sandboxes.make(self._prefix())
                self._checkpoint_directory().mkdir()
            return self._directory

    @property
    def checkpoint(self) -> SyncCheckpoint:
        with self._lock:
            if self._checkpoint is None:
                self._checkpoint = SyncCheckpoint(checkpoint_dest=str(self._checkpoint_directory()))
            return self._checkpoint

    def _checkpoint_directory(self) -> pathlib.Path:
        return pathlib.Path(self.directory) / CHECKPOINT_FOLDER


class CallParameters(ExecutionParameters):
    """What `flytekit.current_context()` returns in a search: as flytekit's own, but made without a directory."""

    def __init__(self, outside: ExecutionParameters) -> None:
        self._sandbox: _Sandbox | None = None  # `None` outside of a call
        self._own_decks: list[Any] = []
        values = ExecutionParameters.new_builder(outside)
        super().__init__(
            execution_date=values.execution_date,
            stats=values.stats,
            tmp_dir=values.working_dir,
            execution_id=values.execution_id,
            logging=values.logging,
            checkpoint=values.checkpoint,
            decks=values.decks,
            raw_output_prefix=values.raw_output_prefix,
            task_id=values.task_id,
            output_metadata_prefix=values.output_metadata_prefix,
            enable_deck=values.enable_deck,
            **values.attrs,
        )

    def of_call(self) -> CallParameters:
        """Return the parameters of a call that is made where these are the parameters."""
        parameters = object.__new__(CallParameters)  # `copy.copy` would ask flytekit's `__getattr__`
        vars(parameters).update(vars(self))
        sandboxes = current_sandboxes() if self._sandbox is None else self._sandbox.sandboxes
        parameters._sandbox = _Sandbox(sandboxes, lambda: self.working_directory)
        parameters._own_decks = []
        return parameters

    def with_task_sandbox(self) -> ExecutionParameters.Builder:
        """Return the builder of `of_call()`: flytekit asks for it at each call that takes flytekit's own way."""
        return cast("ExecutionParameters.Builder", _Builder(self.of_call()))

    @staticmethod
    def new_builder(current: ExecutionParameters | None = None) -> ExecutionParameters.Builder:
        """Return a builder of parameters. It gets the directory and the checkpoint, so they are made."""
        builder = ExecutionParameters.new_builder(current)
        if isinstance(current, CallParameters) and current._sandbox is not None:
            builder.checkpoint = current.checkpoint
        return builder

    def builder(self) -> ExecutionParameters.Builder:
        """Return a builder of parameters like these."""
        return self.new_builder(self)

    @property
    def working_directory(self) -> str:
        """The directory of this call."""
        return str(super().working_directory) if self._sandbox is None else self._sandbox.directory

    @property
    def checkpoint(self) -> Any:
        """The checkpoint of this call."""
        return super().checkpoint if self._sandbox is None else self._sandbox.checkpoint

    @property
    def decks(self) -> list[Any]:
        """The Decks of this call. Those of all calls would keep their pages in memory."""
        return super().decks if self._sandbox is None else self._own_decks

    @property
    def timeline_deck(self) -> Any:
        """The Deck that flytekit's timers write to. No Deck is written for a local call in a search."""
        return _NO_TIMELINE


class _Builder:
    def __init__(self, parameters: CallParameters) -> None:
        self._parameters = parameters

    def build(self) -> CallParameters:
        return self._parameters


class _NoTimeline:
    def append_time_info(self, info: dict[str, Any]) -> None:
        """Drop what a timer has measured."""


_NO_TIMELINE = _NoTimeline()
