"""The code of a worker process: watches the parent process, loads the objective, and runs trials."""

import asyncio
import contextlib
import contextvars
import functools
import operator
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
import optuna
import psutil

from optuna_flyte_dsl._compat.loky import keep_grown_workers
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._text import shown, text_of
from optuna_flyte_dsl.engines.functions import never_warn_of_running_threads
from optuna_flyte_dsl.engines.remote_trial.handle import TOKEN_ENV, TrialHandle
from optuna_flyte_dsl.errors import UnloadableError
from optuna_flyte_dsl.search.error_origin import keep_origin
from optuna_flyte_dsl.search.outcome import mark_retries_used, retries_are_used
from optuna_flyte_dsl.search.runner import TrialRun

_EARLY_WATCH = """
import os, threading, time

def watch():
    while os.getppid() == {parent}:
        if any(thread.name == "{successor}" for thread in threading.enumerate()):
            return
        time.sleep(0.1)
    os._exit(1)

threading.Thread(target=watch, daemon=True).start()
"""
_WATCH = "optuna-flyte-parent"  # the name of the thread that watches the parent once `start_worker` is imported


@dataclass(frozen=True)
class WatchedInitializer:
    """Unpickles to `start_worker`, and watches the parent process while that function's imports are under way.

    The imports of `start_worker` take seconds. An unwatched worker would outlive a parent process that is killed during
    the imports.
    """

    parent: int

    def __reduce__(self) -> tuple[Any, ...]:
        # The early watch, which needs the standard library only, is unpickled before the imports of `start_worker`.
        return operator.itemgetter(1), ((_EarlyWatch(self.parent), start_worker),)

    def __call__(self, *_: Any) -> None:
        raise NotImplementedError("A `WatchedInitializer` must be unpickled, in a worker process, to `start_worker`.")


@dataclass(frozen=True)
class _EarlyWatch:
    parent: int

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (_EARLY_WATCH.format(parent=self.parent, successor=_WATCH), {})


# The rest of this module runs in a worker process.

_payload = b""
_loaded: tuple[asyncio.Runner, Callable[[], Any]] | None = None


def start_worker(parent: int, payload: bytes) -> None:
    """Store the payload, and start a thread that ends this process when the parent process has ended."""
    global _payload
    _payload = payload

    def watch_parent() -> None:
        while os.getppid() == parent:
            time.sleep(pauses.parent_check)
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process().children(recursive=True):
                child.kill()
        os._exit(1)

    if hasattr(os, "setpgrp"):
        os.setpgrp()  # the searching process ends the whole group
    keep_grown_workers()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the searching process handles Ctrl-C, and ends its workers
    threading.Thread(target=watch_parent, name=_WATCH, daemon=True).start()
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def load() -> int:
    """Load the objective, and return the id of this process."""
    global _loaded
    never_warn_of_running_threads()
    try:
        objective, make_runner = cloudpickle.loads(_payload)
    except Exception as error:  # noqa: BLE001 - the user's module may raise anything
        raise UnloadableError(f"A worker process cannot load the objective: {shown(error)}.") from None
    _loaded = (asyncio.Runner(), functools.partial(make_runner, objective))
    return os.getpid()


def run_trial(arguments: dict[str, Any], handle: TrialHandle | None, token: str) -> tuple[bytes, bool]:
    """Run a trial. Return the pickled result, and whether a thread still runs the objective.

    Only the end of this process stops a thread that still runs the objective.
    """
    if _loaded is None:
        load()
    assert _loaded is not None
    if token:
        os.environ[TOKEN_ENV] = token
    loop, make_runner = _loaded
    runner = make_runner()

    async def run() -> Any:
        try:
            trial: Any = handle.open() if handle is not None else None
            return await runner.run(TrialRun(trial, arguments))
        finally:
            await runner.close()

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
        data = bytes(cloudpickle.dumps((value, raised)))
        cloudpickle.loads(data)  # some errors can be pickled, but not unpickled
        return data
    if raised is None:
        return bytes(cloudpickle.dumps((None, RuntimeError(f"It returned {shown(value)}, which cannot be sent."))))
    names = tuple(map(_qualified_name, type(raised).__mro__))
    substitute = SubstituteError(f"{type(raised).__name__}: {text_of(raised)}", names)
    mark_retries_used(substitute, used=retries_are_used(raised))
    keep_origin(substitute, raised)
    return bytes(cloudpickle.dumps((None, substitute)))


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
