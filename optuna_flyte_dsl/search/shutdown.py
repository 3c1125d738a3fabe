"""Tells the trials of a search that is still running when Python exits, and saves outcomes that cannot be told."""

import asyncio
import atexit
import contextlib
import json
import os
import pathlib
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from optuna.trial import Trial

from optuna_flyte_dsl._compat.optuna import cached_params
from optuna_flyte_dsl._retry import pauses
from optuna_flyte_dsl.errors import StorageUnavailableError
from optuna_flyte_dsl.search.outcome import Outcome


class ExitGuard:
    """A context in which Python's exit cancels the search, and waits until its trials are told.

    A local eager workflow runs in a daemon thread of flytekit's. When Ctrl-C ends the main thread, nothing else would
    end the search.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, close: Callable[[], None], is_forked: Callable[[], bool]
    ) -> None:
        self._loop = loop
        self._is_forked = is_forked
        self._close = close
        self._task = asyncio.current_task()
        self._closed = threading.Event()

    def __enter__(self) -> None:
        # Registered anew for each search: exit handlers run in reverse order, and flytekit's, which stops its event
        # loop, was registered when that loop was made.
        atexit.register(self._at_exit)

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        if self._is_forked():  # the search is the parent's
            return
        try:
            if self._task is not None and self._loop.is_running():
                self._loop.call_soon_threadsafe(self._task.cancel)
                self._closed.wait(pauses.exit_patience)
            elif self._task is not None and not self._loop.is_closed():  # `run_until_complete` was interrupted
                self._task.cancel()
                self._loop.run_until_complete(asyncio.wait([self._task], timeout=pauses.exit_patience))
        finally:
            with contextlib.suppress(ValueError):  # this is not the main thread
                # Another Ctrl-C would stop the search from storing its last results.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._close()


def untold_error(name: str, study: str, untold: Mapping[int, tuple[Trial, Outcome]]) -> StorageUnavailableError:
    """Save the outcomes of trials that could not be told in a file, and return the error that names the file."""
    lines: list[dict[str, Any]] = [
        {
            "study": study,
            "trial": number,
            "state": outcome.state.name,
            "values": outcome.values,
            "reason": outcome.reason,
            "params": cached_params(trial),
        }
        for number, (trial, outcome) in untold.items()
    ]
    text = "".join(json.dumps(line, default=repr) + "\n" for line in lines)
    path = _save(text)
    numbers = ", ".join(str(number) for number in untold)
    where = f"They are saved in {path}." if path else f"They could not be saved either: {text}"
    return StorageUnavailableError(
        f"The storage of `{name}` does not answer, and trials {numbers}, which have finished, "
        f"could not be told. {where} Tell them when it is back, with `study.tell(trial, values)`.",
        tuple(lines),
        path,
    )


def _save(text: str) -> pathlib.Path | None:
    name = f"optuna-flyte-untold-{os.getpid()}-{time.time_ns()}.jsonl"
    for folder in (pathlib.Path.cwd(), pathlib.Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            (folder / name).write_text(text)
            return folder / name
    return None
