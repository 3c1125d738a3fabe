"""Runs trials on this machine in worker processes: for work that needs a core of its own, that may crash, or hang."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cloudpickle
import optuna
import psutil
from loky import ProcessPoolExecutor, process_executor
from loky.process_executor import BrokenProcessPool, ShutdownExecutorError
from optuna.trial import Trial

from optuna_flyte_dsl.errors import InvalidObjectiveError, PythonExitError, UnloadableError, WorkerDiedError
from optuna_flyte_dsl.flyte.entities import note_retries_used, retries_are_used
from optuna_flyte_dsl.flyte.handles import TOKEN_ENV, Handle, TrialServer, refresh
from optuna_flyte_dsl.objective import Objective
from optuna_flyte_dsl.threads import Threads, insist

_LOOK_SECONDS = 0.5
_SIGNALS = {"SIGSEGV": "a segmentation fault", "SIGKILL": "it was killed, perhaps for want of memory"}


class _Worker:
    """One process, and what it is given.

    Args:
        gpu: The device that it sees; `None` for all.
        environment: Variables of its environment.
        payload: The objective.
    """

    def __init__(self, gpu: int | str | None, environment: Mapping[str, str], payload: bytes) -> None:
        self.gpu = gpu
        env = dict(environment)
        if gpu is not None:
            env["CUDA_VISIBLE_DEVICES"] = str(gpu)
        # Whatever process loky starts has the objective.
        given = (os.getpid(), payload)
        self.pool = ProcessPoolExecutor(max_workers=1, env=env, initializer=_start, initargs=given)
        self.ready = False

    def end(self) -> None:
        """Kill the process, whatever it does. It blocks."""
        self.pool.shutdown(wait=True, kill_workers=True)


class ProcessRunner:
    """Runs the trials of one search; see `optuna_flyte_dsl.search.Runner`.

    A worker that crashes, or whose trial is given up, is killed; the next trial gets a new one.

    Args:
        objective: What to run.
        gpus: The devices that trials are given, one each; `None` to leave that alone.

    Raises:
        InvalidObjectiveError: If the objective cannot be sent to another process.
    """

    def __init__(self, objective: Objective, gpus: Sequence[int | str] | None = None) -> None:
        self._objective = objective
        self._payload = _pickled(objective)
        self._gpus: list[int | str | None] | None = list(reversed(gpus)) if gpus is not None else None
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._threads = Threads()
        self._server: TrialServer | None = None
        self._lock = threading.Lock()

    async def run(
        self,
        trial: Trial,
        arguments: Mapping[str, Any],
        *,
        attempt: int,  # noqa: ARG002
        begun: Callable[[], None] | None,
    ) -> Any:
        """Run one trial in a worker that runs nothing else meanwhile."""
        handle = await self._threads.run(self._handle, trial) if self._objective.takes_trial else None
        worker = self._take()
        killed = True
        try:
            if not worker.ready:
                await self._wait_for(worker, _prepare)
                worker.ready = True
            if begun is not None:
                begun()
            result, killed = await self._wait_for(worker, _run, dict(arguments), handle)
        except (BrokenProcessPool, RuntimeError) as error:
            if _python_exits(error):
                raise PythonExitError("Python exits while this trial runs.") from error
            if not isinstance(error, BrokenProcessPool):
                raise
            raise WorkerDiedError(f"The trial's worker process died: {_cause(error)}.") from None
        finally:
            await insist(functools.partial(self._give_back, worker, kill=killed))
            if handle is not None:
                await insist(functools.partial(self._forget, trial))
        value, raised = cloudpickle.loads(result)
        if raised is not None:
            raise raised
        return value

    async def _wait_for(self, worker: _Worker, function: Callable[..., Any], *args: Any) -> Any:
        # A new executor starts its process in `submit`, which blocks.
        future = asyncio.wrap_future(await self._threads.run(lambda: worker.pool.submit(function, *args)))
        try:
            # Loky's own future is not cancelled: its thread, which ends the worker, fails where it meets such a one.
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda over: over.cancelled() or over.exception())  # it is heard; nobody needs it
            raise

    def _take(self) -> _Worker:
        if self._idle:
            worker = self._idle.pop()
        else:
            environment = {TOKEN_ENV: self._server.token} if self._server is not None else {}
            worker = _Worker(self._gpus.pop() if self._gpus else None, environment, self._payload)
        self._busy.add(worker)
        return worker

    async def _give_back(self, worker: _Worker, *, kill: bool) -> None:
        if worker not in self._busy:
            return
        if kill:
            await self._threads.run(worker.end)
            if self._gpus is not None and worker.gpu is not None:
                self._gpus.append(worker.gpu)
        else:
            self._idle.append(worker)
        self._busy.discard(worker)

    def _handle(self, trial: Trial) -> Handle:
        with self._lock:
            if self._server is None:
                self._server = TrialServer(trial.storage, trial.study.study_name)
        return self._server.handle(trial)

    async def _forget(self, trial: Trial) -> None:
        assert self._server is not None
        self._server.forget(trial)
        await self._threads.run(refresh, trial)

    async def close(self) -> None:
        """End all workers; see `optuna_flyte_dsl.search.Runner`."""
        workers, self._idle = self._idle, []
        await asyncio.gather(*(self._threads.run(worker.end) for worker in workers))
        if self._server is not None:
            await self._threads.run(self._server.close)
        await self._threads.close()


def _pickled(objective: Objective) -> bytes:
    try:
        return bytes(cloudpickle.dumps(objective))
    except Exception as error:
        raise InvalidObjectiveError(
            f'`executor="process"`: `{objective.name}` cannot be sent to another process: {error!r}. Make what it '
            "needs inside of it: open files, locks and connections cannot be sent."
        ) from error


def _python_exits(error: BaseException) -> bool:
    """Tell whether this is Python's exit, at which loky ends its workers, before anything cancels a search."""
    exits: bool = process_executor._global_shutdown
    return exits or isinstance(error, ShutdownExecutorError) or "after interpreter shutdown" in str(error)


def _cause(error: BaseException) -> str:
    text = str(error)
    for name, words in _SIGNALS.items():
        if name in text:
            return f"{words} ({name})"
    codes = text.rpartition("{")[2].partition("}")[0]
    return f"exit code {codes}" if codes else " ".join(text.split())


# What follows runs in a worker.

_payload = b""
_loaded: Any = None


def _start(parent: int, payload: bytes) -> None:
    """Let this process end with the one that has started it, however that ends; and keep what it runs."""
    global _payload
    _payload = payload

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process().children(recursive=True):
                child.kill()
        os._exit(1)

    # Loky would exchange a process that has grown by 300 MB: it may keep what it has read, for its next trials.
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the searching process's to hear; it ends its workers
    threading.Thread(target=watch, name="optuna-flyte-parent", daemon=True).start()
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _prepare() -> None:
    _load()


def _load() -> Any:
    global _loaded
    from optuna_flyte_dsl.flyte.local import leave_unsaid
    from optuna_flyte_dsl.flyte.runner import FlyteRunner

    leave_unsaid()
    try:
        objective: Objective = cloudpickle.loads(_payload)
    except Exception as error:  # noqa: BLE001 - whatever a module raises
        raise UnloadableError(f"A worker process cannot load the objective: {error!r}.") from None
    _loaded = (asyncio.Runner(), objective, FlyteRunner)
    return _loaded


def _run(arguments: dict[str, Any], handle: Handle | None) -> tuple[bytes, bool]:
    """Return the pickled result, and whether something runs on that only the end of this process can stop."""
    loop, objective, make = _loaded or _load()
    runner = make(objective)

    async def run() -> Any:
        try:
            trial = handle.open() if handle is not None else None
            return await runner.run(trial, arguments, attempt=0, begun=None)
        finally:
            await runner.close()

    try:
        result: tuple[Any, BaseException | None] = (loop.run(run(), context=contextvars.copy_context()), None)
    except BaseException as error:  # noqa: BLE001 - the search judges it
        result = (None, error)
    return _packed(*result), runner.busy


def _packed(value: Any, raised: BaseException | None) -> bytes:
    """Pickle a result; where that cannot be sent, an error that says what it was."""
    with contextlib.suppress(Exception):
        data = bytes(cloudpickle.dumps((value, raised)))
        cloudpickle.loads(data)  # some errors cannot be made again of what they are pickled to
        return data
    if raised is None:
        return bytes(cloudpickle.dumps((None, RuntimeError(f"It returned {value!r}, which cannot be sent."))))
    names = tuple(_name(kind) for kind in type(raised).__mro__)
    told = ToldError(f"{type(raised).__name__}: {raised}", names)
    note_retries_used(told, used=retries_are_used(raised))
    return bytes(cloudpickle.dumps((None, told)))


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


class ToldError(RuntimeError):
    """Stands for an error that cannot be sent from a worker process.

    Args:
        text: Its name and text.
        names: Those of its classes.
    """

    def __init__(self, text: str, names: tuple[str, ...]) -> None:
        super().__init__(text, names)
        self.__told__ = self._text = text
        self._names = names

    def __str__(self) -> str:
        return self._text

    def stands_for(self, kinds: Sequence[type[BaseException]]) -> bool:
        """Tell whether it stands for an error of one of these kinds; see `catch` of `optimize`."""
        return any(_name(kind) in self._names for kind in kinds)
