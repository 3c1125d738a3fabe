"""The work of a worker process: it watches the process that has started it, loads the objective, and runs trials."""

import asyncio
import contextlib
import contextvars
import enum
import functools
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle
import optuna
import psutil

from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._pickling import dumps
from optuna_flyte_dsl._text import shown, text_of
from optuna_flyte_dsl.engines.fork_server import READ, kill_group, receive_bytes, send_bytes
from optuna_flyte_dsl.engines.functions import never_warn_of_running_threads
from optuna_flyte_dsl.engines.remote_trial.handle import TOKEN_ENV, TrialHandle
from optuna_flyte_dsl.search.error_origin import keep_origin
from optuna_flyte_dsl.search.outcome import mark_retries_used, retries_are_used
from optuna_flyte_dsl.search.runner import TrialRun

_WATCH = "optuna-flyte-parent"  # the name of the thread that watches the parent process
_loaded: tuple[asyncio.Runner, Any] | None = None


class Answer(enum.Enum):
    """What an answer of a worker process is."""

    LOADED = "the objective is loaded"
    RESULT = "the pickled result of a trial, and whether a thread still runs the objective"
    REFUSED = "an error in words: what was sent cannot be unpickled"


def work(channel: socket.socket) -> None:
    """Load the objective, which is the first request, and run a trial at each other request, until the channel ends."""
    _begin()
    worker = os.getpid()
    with contextlib.suppress(EOFError, ConnectionError):
        send_bytes(channel, pickle.dumps(_refused_or(functools.partial(load, _read(channel)))))
        while True:
            request = _read(channel)
            answer = _refused_or(functools.partial(cloudpickle.loads, request))
            if answer[0] is not Answer.REFUSED:
                answer = (Answer.RESULT, run_trial(*answer))
            if os.getpid() != worker:  # the objective has forked this process, which must not answer too
                os._exit(0)
            for stream in (sys.stdout, sys.stderr):  # a worker is killed at last
                with contextlib.suppress(Exception):
                    stream.flush()
            send_bytes(channel, pickle.dumps(answer))
    kill_group(worker, is_alive=True)  # what a trial has started ends too


def _read(channel: socket.socket) -> bytes:
    """Read a request, and tell that it is read."""
    request = receive_bytes(channel)
    channel.sendall(READ)
    return request


def _refused_or(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # noqa: BLE001 - the user's modules may raise anything
        return Answer.REFUSED, shown(error)


def _begin() -> None:
    """Start a thread that ends this process when the process has ended that has started it."""
    parent = os.getppid()

    def watch_parent() -> None:
        while os.getppid() == parent:
            time.sleep(pauses.parent_check)
        with contextlib.suppress(psutil.Error, OSError):
            for child in psutil.Process().children(recursive=True):
                if os.getpgid(child.pid) != os.getpgrp():  # those of the group die with this process, all at once
                    child.kill()
        kill_group(os.getpid(), is_alive=True)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the searching process handles Ctrl-C, and ends its workers
    threading.Thread(target=watch_parent, name=_WATCH, daemon=True).start()
    never_warn_of_running_threads()
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def load(payload: bytes) -> tuple[Answer, None]:
    """Load the objective, and make its runner, which runs all trials of this process."""
    global _loaded
    objective, make_runner = cloudpickle.loads(payload)
    _loaded = (asyncio.Runner(), make_runner(objective))
    return Answer.LOADED, None


def run_trial(arguments: dict[str, Any], handle: TrialHandle | None, token: str) -> tuple[bytes, bool]:
    """Run a trial. Return the pickled result, and whether a thread still runs the objective.

    Only the end of this process stops a thread that still runs the objective.
    """
    assert _loaded is not None
    if token:
        os.environ[TOKEN_ENV] = token
    loop, runner = _loaded

    async def run() -> Any:
        trial: Any = handle.open() if handle is not None else None
        return await runner.run(TrialRun(trial, arguments))

    try:
        result: tuple[Any, BaseException | None] = (loop.run(run(), context=contextvars.copy_context()), None)
    except BaseException as error:  # noqa: BLE001 - the search judges the error
        result = (None, error)
    return _pickle_result(*result), runner.busy


def _pickle_result(value: Any, raised: BaseException | None) -> bytes:
    """Pickle a result. An error or a result that cannot be pickled is replaced by an error that describes it."""
    if raised is not None:
        keep_origin(raised)
    with contextlib.suppress(Exception):
        data = dumps((value, raised))
        cloudpickle.loads(data)  # some errors can be pickled, but not unpickled
        return data
    if raised is None:
        return dumps((None, RuntimeError(f"It returned {shown(value)}, which cannot be sent.")))
    names = tuple(map(_qualified_name, type(raised).__mro__))
    substitute = SubstituteError(f"{type(raised).__name__}: {text_of(raised)}", names)
    mark_retries_used(substitute, used=retries_are_used(raised))
    keep_origin(substitute, raised)
    return dumps((None, substitute))


def _qualified_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


class SubstituteError(RuntimeError):
    """Replaces an error of a worker process that cannot be pickled."""

    def __init__(self, text: str, names: tuple[str, ...]) -> None:
        super().__init__(text, names)
        self.reason_of_trial = text
        self._names = names

    def __str__(self) -> str:
        return self.reason_of_trial

    def stands_for(self, kinds: Sequence[type[BaseException]]) -> bool:
        """Return whether the replaced error is of one of the given classes. The option `catch` needs this method."""
        return any(_qualified_name(kind) in self._names for kind in kinds)
