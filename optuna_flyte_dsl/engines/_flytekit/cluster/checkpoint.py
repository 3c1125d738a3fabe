"""Keeps the journals of studies in Flyte's checkpoint, which the pod's next attempt reads."""

import asyncio
import concurrent.futures
import functools
import itertools
import json
import pathlib
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from flytekit.core.checkpointer import Checkpoint
from flytekit.core.context_manager import FlyteContext, flyte_context_Var
from flytekit.exceptions.user import FlyteDataNotFoundException, FlyteRecoverableException
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend

from optuna_flyte_dsl._foreign_errors import is_blob_store_outage
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._retry import backoff, retry
from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.engines._flytekit.event_loops import close_loops, use_own_loop

T = TypeVar("T")

_NAME = "optuna_flyte_dsl-{:06d}-{}.jsonl"
_SEGMENT_BYTES = 256 * 1024
"""The size, in bytes, from which a new file of the journal is begun.

A write of the journal uploads the files that have changed, and no others.
"""

_threads = itertools.count()
"""Numbers for thread names. A thread that ends closes the event loops that flytekit keeps for the thread's name."""


def _start_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name=f"optuna-flyte-checkpoint-{next(_threads)}", daemon=True)
    thread.start()
    return thread


class CheckpointStore:
    """The journals of all searches of one eager workflow, in the workflow's checkpoint.

    The lines of a journal are appended in memory. A thread uploads the lines: while one upload goes on, new lines wait
    for the next upload.
    """

    def __init__(self, checkpoint: Checkpoint, context: FlyteContext, *, segment_bytes: int = _SEGMENT_BYTES) -> None:
        self._segment_bytes = segment_bytes
        self._checkpoint = checkpoint
        self._context = context
        self._lock = threading.Condition()
        self._journals: dict[str, list[dict[str, Any]]] = {}
        self._segments: list[bytearray] = [bytearray()]
        self._turn = False
        self._clean = 0  # number of segments that are uploaded and do not change any more
        self._waiting: list[concurrent.futures.Future[None]] = []
        self._thread: threading.Thread | None = None
        self._restored = False

    def storage(self, key: str) -> BaseStorage:
        """Return the storage of a search, with the trials of the pod's earlier attempts. The call may block."""
        self.is_new(key)
        with self._lock:
            self._journals.setdefault(key, [])
        return JournalStorage(_CheckpointJournal(self, key))

    def is_new(self, key: str) -> bool:
        """Return whether the checkpoint of the pod's earlier attempts has no journal of a search. The call may block.

        Raises:
            FlyteRecoverableException: If the blob store was unavailable all the time. Flyte then starts the pod again.
        """
        with self._lock:
            if not self._restored:
                # A new thread restores, so that the caller's Flyte context and event loop stay as they are.
                restored: concurrent.futures.Future[None] = concurrent.futures.Future()
                _start_thread(lambda: self._restore_to(restored))
                restored.result()
                self._restored = True
            return not self._journals.get(key)

    def read(self, key: str, start: int) -> list[dict[str, Any]]:
        with self._lock:
            return self._journals[key][start:]

    def append(self, key: str, lines: list[dict[str, Any]]) -> None:
        with self._lock:
            for line in lines:
                text = _text(key, line)
                if len(self._segments[-1]) > self._segment_bytes:
                    self._segments.append(bytearray())
                self._segments[-1] += text
                self._journals[key].append(line)

    async def commit(self) -> None:
        """Wait until all lines appended so far have been written to the checkpoint. A failed write is only logged."""
        future: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._lock:
            self._waiting.append(future)
            if self._thread is None:
                self._thread = _start_thread(self._work)
            self._lock.notify_all()
        await asyncio.wrap_future(future)

    def _restore_to(self, restored: concurrent.futures.Future[None]) -> None:
        try:
            self._restore()
            restored.set_result(None)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            restored.set_exception(error)

    def _restore(self) -> None:
        """Read the previous attempt's journals, to commit them again: each attempt's checkpoint starts empty."""
        flyte_context_Var.set([self._context])
        use_own_loop()
        try:
            folder = self._restored_folder()
        except FlyteDataNotFoundException:
            logger.debug("There is no earlier checkpoint.", exc_info=True)
            return
        except Exception as error:
            if is_blob_store_outage(error):
                raise FlyteRecoverableException(
                    f"The checkpoint of the previous attempt could not be read for {pauses.checkpoint_patience:g} "
                    f"seconds: {error!r}"
                ) from error
            logger.warning("The checkpoint of the previous attempt cannot be read: %r. The search starts anew.", error)
            return
        finally:
            close_loops(threading.current_thread().name)
        segments: dict[str, list[tuple[str, Any]]] = {}
        for path in sorted(pathlib.Path(folder).glob("optuna_flyte_dsl-*.jsonl")) if folder is not None else ():
            number, lines = path.stem.rsplit("-", 1)[0], _lines(path.read_bytes())
            if len(lines) >= len(segments.get(number, ())):
                segments[number] = lines
        for key, line in itertools.chain.from_iterable(segments.values()):
            self._journals.setdefault(key, []).append(line)
            # Write the whole journal as one file: where writes are atomic, the file is written whole or not at all.
            self._segments[0] += _text(key, line)
        if self._segments[0]:
            self._segments.append(bytearray())

    def _restored_folder(self) -> Any:
        """Return the folder of the earlier checkpoint. An outage of the blob store is waited out."""
        waits = backoff(pauses.checkpoint_retries[0], pauses.admin_longest, lambda: pauses.checkpoint_patience)
        restore = functools.partial(self._checkpoint.restore, None)  # type: ignore[arg-type]
        return retry(lambda: _retry_access(restore), waits, may_pass=is_blob_store_outage)

    def _work(self) -> None:
        flyte_context_Var.set([self._context])
        use_own_loop()
        try:
            while self._write():
                pass
        finally:
            close_loops(threading.current_thread().name)

    def _write(self) -> bool:
        """Wait for a commit, and upload the changed segments. Return whether the writing thread continues."""
        with self._lock:
            if not self._lock.wait_for(lambda: self._waiting, timeout=pauses.checkpoint_idle):
                self._thread = None
                return False
            waiting, self._waiting = self._waiting, []
            first, last = self._clean, len(self._segments) - 1
            # Two file names take turns, so that the file of the last write stays while the next one is written. Where a
            # write is not atomic, a kill during a write leaves the other file whole.
            turn = "ab"[self._turn]
            files = {_NAME.format(number, turn): bytes(self._segments[number]) for number in range(first, last + 1)}
        try:
            _retry_access(lambda: self._save(files))
            self._clean = last
            self._turn = not self._turn
        except Exception as error:  # noqa: BLE001 - the next commit retries
            logger.warning("The checkpoint could not be written, and will be tried again: %r", error)
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(None)
        return True

    def _save(self, files: dict[str, bytes]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                path = pathlib.Path(folder, name)
                path.write_bytes(data)
                self._checkpoint.save(path)


def _text(key: str, line: dict[str, Any]) -> bytes:
    return json.dumps([key, line], separators=(",", ":"), default=_plain).encode() + b"\n"


def _plain(value: Any) -> Any:
    """Return a NumPy number as a Python number, because JSON knows no NumPy numbers and an attribute may hold one."""
    if callable(item := getattr(value, "item", None)):
        return item()
    raise TypeError(f"{shown(value)}, of type {type(value).__name__}, cannot be stored: use a type of JSON.")


def _retry_access(access: Callable[[], T]) -> T:
    """Access the checkpoint, and retry a failed access unless the data is missing."""

    def may_pass(error: Exception) -> bool:
        if isinstance(error, FlyteDataNotFoundException):
            return False
        logger.debug("The checkpoint could not be accessed.", exc_info=error)
        return True

    return retry(access, iter(pauses.checkpoint_retries), may_pass=may_pass)


def _lines(data: bytes) -> list[tuple[str, Any]]:
    """Return the whole lines of a file. A kill during a write may have cut the last line of the file short."""
    lines = []
    for text in data.splitlines():
        try:
            key, line = json.loads(text)
        except ValueError:
            break
        lines.append((key, line))
    return lines


@dataclass(frozen=True)
class _CheckpointJournal(BaseJournalBackend):
    """The journal of one search. Optuna prescribes the names of the arguments."""

    store: CheckpointStore
    key: str

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return self.store.read(self.key, log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.store.append(self.key, logs)
