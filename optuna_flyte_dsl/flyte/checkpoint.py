"""Keeps the journals of studies in Flyte's checkpoint, which the next attempt of a pod can read."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import json
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from flytekit.core.checkpointer import Checkpoint
from flytekit.core.context_manager import FlyteContext, flyte_context_Var
from flytekit.exceptions.user import FlyteDataNotFoundException
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend

from optuna_flyte_dsl.flyte.local import close_loops, use_own_loop
from optuna_flyte_dsl.log import logger

T = TypeVar("T")

_NAME = "optuna_flyte_dsl-{:06d}-{}.jsonl"
_SEGMENT_BYTES = 256 * 1024
"""Size from which a file of the journal is closed and the next one begun: a write uploads the last one only."""

_PAUSES = (0.2, 1.0, 3.0)
"""Seconds before each further try to access a checkpoint."""

_IDLE_SECONDS = 5.0
"""Seconds after which the thread that writes ends, when there is nothing to write."""

_threads = itertools.count()
"""Numbers of threads. Flytekit's event loop of one goes by its name, and one that ends would close its successor's."""


def _start_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name=f"optuna-flyte-checkpoint-{next(_threads)}", daemon=True)
    thread.start()
    return thread


class CheckpointStore:
    """The journals of all searches of one eager workflow, in its checkpoint.

    A journal's lines are appended in memory, and uploaded in the background, together with all that have come since.

    Args:
        checkpoint: Flyte's checkpoint of this attempt and of the one before.
        context: The Flyte context that the checkpoint is used in.
    """

    def __init__(self, checkpoint: Checkpoint, context: FlyteContext) -> None:
        self._checkpoint = checkpoint
        self._context = context
        self._lock = threading.Condition()
        self._journals: dict[str, list[dict[str, Any]]] = {}
        self._segments: list[bytearray] = [bytearray()]
        self._turn = False
        self._clean = 0  # segments before this one are uploaded, and do not change
        self._waiting: list[concurrent.futures.Future[None]] = []
        self._thread: threading.Thread | None = None
        self._restored = False

    def storage(self, key: str) -> BaseStorage:
        """Return the storage of a search: what an earlier attempt has left, and all that is added. It may block.

        Args:
            key: The search's, the same in each attempt.
        """
        self.is_new(key)
        with self._lock:
            self._journals.setdefault(key, [])
        return JournalStorage(_Journal(self, key))

    def is_new(self, key: str) -> bool:
        """Tell whether nothing is kept of a search. It may block."""
        with self._lock:
            if not self._restored:
                # In a thread of its own: the caller's context and event loop stay as they are.
                _start_thread(self._restore).join()
                self._restored = True
            return not self._journals.get(key)

    def read(self, key: str, start: int) -> list[dict[str, Any]]:
        """Return a journal's lines from a number on."""
        with self._lock:
            return self._journals[key][start:]

    def append(self, key: str, lines: list[dict[str, Any]]) -> None:
        """Append lines to a journal."""
        with self._lock:
            for line in lines:
                text = _text(key, line)
                if len(self._segments[-1]) > _SEGMENT_BYTES:
                    self._segments.append(bytearray())
                self._segments[-1] += text
                self._journals[key].append(line)

    async def commit(self) -> None:
        """Return when all lines that were appended before are in the checkpoint, or could not be written."""
        future: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._lock:
            self._waiting.append(future)
            if self._thread is None:
                self._thread = _start_thread(self._work)
            self._lock.notify_all()
        await asyncio.wrap_future(future)

    def _restore(self) -> None:
        """Read what the attempt before has left. The checkpoints of attempts do not chain, so it is written again."""
        flyte_context_Var.set([self._context])
        use_own_loop()
        try:
            folder = _patiently(lambda: self._checkpoint.restore(None))  # type: ignore[arg-type]
        except FlyteDataNotFoundException:
            logger.debug("There is no earlier checkpoint.", exc_info=True)
            return
        except Exception as error:  # noqa: BLE001 - a search that starts anew is worth more than none
            logger.warning("The checkpoint of the attempt before cannot be read: %r. The search starts anew.", error)
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
            # All in one file: it is written whole or not at all, where writes are atomic.
            self._segments[0] += _text(key, line)
        if self._segments[0]:
            self._segments.append(bytearray())

    def _work(self) -> None:
        flyte_context_Var.set([self._context])
        use_own_loop()
        try:
            while self._write():
                pass
        finally:
            close_loops(threading.current_thread().name)

    def _write(self) -> bool:
        """Wait for a commit and write it. Return whether the thread is to go on."""
        with self._lock:
            if not self._lock.wait_for(lambda: self._waiting, timeout=_IDLE_SECONDS):
                self._thread = None
                return False
            waiting, self._waiting = self._waiting, []
            first, last = self._clean, len(self._segments) - 1
            # Two names take turns: where a write is not atomic, a kill in the middle leaves the one before whole.
            turn = "ab"[self._turn]
            files = {_NAME.format(number, turn): bytes(self._segments[number]) for number in range(first, last + 1)}
        try:
            _patiently(lambda: self._save(files))
            self._clean = last
            self._turn = not self._turn
        except Exception as error:  # noqa: BLE001 - the next commit writes it too
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
    """Return a number of NumPy's as Python's: an attribute may hold one where studies are in memory."""
    if callable(item := getattr(value, "item", None)):
        return item()
    raise TypeError(f"{value!r}, of type {type(value).__name__}, cannot be kept: use what JSON has.")


def _patiently(access: Callable[[], T]) -> T:
    """Access the checkpoint, again and again while it fails, for some seconds."""
    for pause in _PAUSES:
        try:
            return access()
        except FlyteDataNotFoundException:
            raise
        except Exception:  # noqa: BLE001 - tried again
            logger.debug("The checkpoint could not be accessed.", exc_info=True)
            time.sleep(pause)
    return access()


def _lines(data: bytes) -> list[tuple[str, Any]]:
    """Return the whole lines at the start of a file: a kill while it was written has cut it short."""
    lines = []
    for text in data.splitlines():
        try:
            key, line = json.loads(text)
        except ValueError:
            break
        lines.append((key, line))
    return lines


class _Journal(BaseJournalBackend):
    """One search's journal.

    Args:
        store: Where it is kept.
        key: The search's.
    """

    def __init__(self, store: CheckpointStore, key: str) -> None:
        self._store = store
        self._key = key

    # The arguments' names are Optuna's.

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return self._store.read(self._key, log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._store.append(self._key, logs)
