"""Runs trials in worker processes on this machine: for work that needs a core of its own, may crash, or may hang."""

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
from loky import ProcessPoolExecutor
from loky.process_executor import BrokenProcessPool, ShutdownExecutorError
from optuna.trial import Trial

from optuna_flyte_dsl._compat.loky import keep_grown_workers, kill_workers_at_exit, python_is_exiting
from optuna_flyte_dsl._compat.optuna import refresh
from optuna_flyte_dsl._foreign_errors import worker_death
from optuna_flyte_dsl._retry import pauses
from optuna_flyte_dsl._text import shown, text_of
from optuna_flyte_dsl._threads import Threads, finish
from optuna_flyte_dsl.engines.functions import never_warn_of_running_threads
from optuna_flyte_dsl.engines.remote_trial.handle import TOKEN_ENV, TrialHandle
from optuna_flyte_dsl.engines.remote_trial.server import TrialServer
from optuna_flyte_dsl.errors import InvalidObjectiveError, PythonExitError, UnloadableError, WorkerDiedError
from optuna_flyte_dsl.search.outcome import mark_retries_used, retries_are_used
from optuna_flyte_dsl.search.runner import TrialRun
from optuna_flyte_dsl.space.objective import Objective


class _Worker:
    """One worker process.

    Args:
        gpu: The device that it sees; `None` for all devices.
    """

    def __init__(self, gpu: int | str | None, payload: bytes) -> None:
        self.gpu = gpu
        env = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
        # An initializer, so that every process which loky starts has the objective.
        self.pool = ProcessPoolExecutor(
            max_workers=1, env=env, initializer=_WatchedInitializer(os.getpid()), initargs=(os.getpid(), payload)
        )
        kill_workers_at_exit(self.pool)
        self.pid: int | None = None  # the process's, and its group's; `None` until it has loaded the objective

    def kill(self) -> None:
        """Kill a worker process and its children, which would outlive the worker if the system has killed it."""
        self.pool.shutdown(wait=True, kill_workers=True)
        if self.pid is not None and hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)


class ProcessRunner:
    """Runs the trials of one search, each in a worker process that runs nothing else meanwhile; see `Runner`.

    A worker that crashes, or whose trial is given up, is killed. The next trial gets a new one.

    Args:
        make_runner: Makes the runner of the objective inside a worker. The maker must be picklable.
        gpus: The devices, one for each running trial; `None` if trials see all devices.
    """

    def __init__(
        self, objective: Objective, make_runner: Callable[[Objective], Any], gpus: Sequence[int | str] | None = None
    ) -> None:
        self._objective = objective
        self._payload = _pickle(objective, make_runner)
        self._gpus: list[int | str | None] | None = list(reversed(gpus)) if gpus is not None else None
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._threads = Threads()
        self._server: TrialServer | None = None
        self._lock = threading.Lock()

    async def run(self, run: TrialRun) -> Any:
        handle = await self._threads.run(self._serve, run.trial) if self._objective.takes_trial else None
        worker = self._take_worker()
        must_kill = True
        try:
            if worker.pid is None:
                worker.pid = await self._call(worker, _load)
            run.begin()
            token = self._server.token_of(handle.trial) if self._server is not None and handle is not None else ""
            result, must_kill = await self._call(worker, _run, dict(run.arguments), handle, token)
        except (BrokenProcessPool, RuntimeError) as error:
            if python_is_exiting() or isinstance(error, ShutdownExecutorError):
                raise PythonExitError("Python exits while this trial runs.") from error
            if not isinstance(error, BrokenProcessPool):
                raise
            raise WorkerDiedError(f"The trial's worker process died: {worker_death(error)}.") from None
        finally:
            await finish(functools.partial(self._give_back, worker, kill=must_kill))
            if handle is not None:
                await finish(functools.partial(self._forget, run.trial))
        value, raised = cloudpickle.loads(result)
        if raised is not None:
            raise raised
        return value

    async def _call(self, worker: _Worker, function: Callable[..., Any], *args: Any) -> Any:
        # In a thread, because a new executor starts its process in `submit`.
        future = asyncio.wrap_future(await self._threads.run(lambda: worker.pool.submit(function, *args)))
        try:
            # Loky's own future is not cancelled: loky's thread, which ends the worker, fails on a cancelled future.
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda over: over.cancelled() or over.exception())  # marks the error as retrieved
            raise

    def _take_worker(self) -> _Worker:
        worker = self._idle.pop() if self._idle else _Worker(self._gpus.pop() if self._gpus else None, self._payload)
        self._busy.add(worker)
        return worker

    async def _give_back(self, worker: _Worker, *, kill: bool) -> None:
        if worker not in self._busy:
            return
        if kill:
            await self._threads.run(worker.kill)
            if self._gpus is not None and worker.gpu is not None:
                self._gpus.append(worker.gpu)
        else:
            self._idle.append(worker)
        self._busy.discard(worker)

    def _serve(self, trial: Trial) -> TrialHandle:
        with self._lock:
            if self._server is None:
                self._server = TrialServer(trial.storage, trial.study.study_name)
        return self._server.serve(trial)

    async def _forget(self, trial: Trial) -> None:
        assert self._server is not None
        self._server.forget(trial)
        await self._threads.run(refresh, trial)

    async def close(self) -> None:
        workers, self._idle = self._idle, []
        await asyncio.gather(*(self._threads.run(worker.kill) for worker in workers))
        if self._server is not None:
            await self._threads.run(self._server.close)
        await self._threads.close()


def _pickle(objective: Objective, make_runner: Callable[[Objective], Any]) -> bytes:
    try:
        return bytes(cloudpickle.dumps((objective, make_runner)))
    except Exception as error:
        raise InvalidObjectiveError(
            f'`executor="process"`: `{objective.name}` cannot be sent to another process: {shown(error)}. Make what it '
            "needs inside it: open files, locks and connections cannot be sent."
        ) from error


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
_WATCH = "optuna-flyte-parent"  # the name of the thread that watches the parent when all is imported


@dataclass(frozen=True)
class _WatchedInitializer:
    """Unpickles to `_start_worker`, and watches the parent process while that function's imports are under way.

    The imports take seconds. A parent process that is killed meanwhile would leave its worker behind for as long.
    """

    parent: int

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled in this order: the early watch, which needs the standard library only; then what is to be imported.
        return operator.itemgetter(1), ((_EarlyWatch(self.parent), _start_worker),)

    def __call__(self, *_: Any) -> None:
        raise NotImplementedError("it is for a worker process, in which it is `_start_worker`")


@dataclass(frozen=True)
class _EarlyWatch:
    parent: int

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (_EARLY_WATCH.format(parent=self.parent, successor=_WATCH), {})


# The rest of this module runs in a worker process.

_payload = b""
_loaded: tuple[asyncio.Runner, Callable[[], Any]] | None = None


def _start_worker(parent: int, payload: bytes) -> None:
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


def _load() -> int:
    """Load the objective, and return the id of this process."""
    global _loaded
    never_warn_of_running_threads()
    try:
        objective, make_runner = cloudpickle.loads(_payload)
    except Exception as error:  # noqa: BLE001 - the user's module may raise anything
        raise UnloadableError(f"A worker process cannot load the objective: {shown(error)}.") from None
    _loaded = (asyncio.Runner(), functools.partial(make_runner, objective))
    return os.getpid()


def _run(arguments: dict[str, Any], handle: TrialHandle | None, token: str) -> tuple[bytes, bool]:
    """Return the pickled result, and whether a thread is still running.

    Only the end of this process stops a thread that still runs the objective.
    """
    if _loaded is None:
        _load()
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
    except BaseException as error:  # noqa: BLE001 - the search judges it
        result = (None, error)
    return _pickle_result(*result), runner.busy


def _pickle_result(value: Any, raised: BaseException | None) -> bytes:
    """Pickle a result. An error or a result that cannot be pickled is replaced by an error that describes it."""
    with contextlib.suppress(Exception):
        data = bytes(cloudpickle.dumps((value, raised)))
        cloudpickle.loads(data)  # some errors can be pickled, but not unpickled
        return data
    if raised is None:
        return bytes(cloudpickle.dumps((None, RuntimeError(f"It returned {shown(value)}, which cannot be sent."))))
    names = tuple(map(_qualified_name, type(raised).__mro__))
    substitute = SubstituteError(f"{type(raised).__name__}: {text_of(raised)}", names)
    mark_retries_used(substitute, used=retries_are_used(raised))
    return bytes(cloudpickle.dumps((None, substitute)))


def _qualified_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


class SubstituteError(RuntimeError):
    """Stands for an error of a worker process that cannot be pickled."""

    def __init__(self, text: str, names: tuple[str, ...]) -> None:
        super().__init__(text, names)
        self.reason_of_trial = text
        self._names = names

    def __str__(self) -> str:
        return self.reason_of_trial

    def stands_for(self, kinds: Sequence[type[BaseException]]) -> bool:
        """Tell whether this error stands for an error of one of the given classes; the option `catch` asks for it."""
        return any(_qualified_name(kind) in self._names for kind in kinds)
