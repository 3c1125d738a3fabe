"""Runs trials in worker processes on this machine: for work that needs a core of its own, may crash, or may hang."""

import asyncio
import functools
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import cloudpickle
from optuna.trial import Trial

from optuna_flyte_dsl._compat.optuna import refresh
from optuna_flyte_dsl._pickling import dumps
from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl._threads import Threads, finish
from optuna_flyte_dsl.engines.remote_trial.handle import TrialHandle
from optuna_flyte_dsl.engines.remote_trial.server import TrialServer
from optuna_flyte_dsl.engines.worker_process import Answer
from optuna_flyte_dsl.engines.worker_starter import RequestNotReadError, WorkerProcess, starter_of
from optuna_flyte_dsl.errors import FixedArgumentError, InvalidObjectiveError, UnloadableError, WorkerDiedError
from optuna_flyte_dsl.search.runner import TrialRun
from optuna_flyte_dsl.space.objective import Objective

_PLAIN_TYPES = (bool, int, float, type(None))
_CURE = "Open files, locks and connections cannot be sent: create them inside the objective."


class _Worker:
    """One worker process.

    Args:
        gpu: The device that the worker process sees; `None` for all devices.
    """

    def __init__(self, process: WorkerProcess, gpu: int | str | None) -> None:
        self.process = process
        self.gpu = gpu
        self.is_loaded = False  # whether the process has the objective
        self.has_run = False  # whether the process has run a trial


class ProcessRunner:
    """Runs the trials of one search, each in a worker process that runs nothing else meanwhile; see `Runner`.

    A worker that crashes, or whose trial is given up, is killed. The next trial gets a new worker.

    Args:
        make_runner: Makes the runner of the objective inside a worker. `make_runner` must be picklable.
        gpus: The devices, one for each running trial; `None` if trials see all devices.
    """

    def __init__(
        self, objective: Objective, make_runner: Callable[[Objective], Any], gpus: Sequence[int | str] | None = None
    ) -> None:
        self._objective = objective
        self._payload = _pickle(objective, make_runner)
        self._starter = starter_of(([make_runner.__module__], _libraries_of(objective.target)))
        self._starter.begin()
        self._gpus: list[int | str | None] | None = list(reversed(gpus)) if gpus is not None else None
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._threads = Threads()
        self._server: TrialServer | None = None
        self._lock = threading.Lock()

    async def run(self, run: TrialRun) -> Any:
        handle = await self._threads.run(self._serve, run.trial) if self._objective.takes_trial else None
        try:
            result = None
            while result is None:
                _raise_if_cancelled()
                result = await self._result_of(run, handle)
        finally:
            if handle is not None:
                await finish(functools.partial(self._forget, run.trial))
        value, raised = cloudpickle.loads(result)
        if raised is not None:
            raise raised
        return value

    async def _result_of(self, run: TrialRun, handle: TrialHandle | None) -> bytes | None:
        """Run a trial in a worker. Return its pickled result; `None` if an idle worker died and has not begun it."""
        worker = await self._take_worker()
        must_kill = True
        try:
            if not worker.is_loaded:
                await self._load(worker)
            run.begin()
            token = self._server.token_of(handle.trial) if self._server is not None and handle is not None else ""
            if handle is None and all(type(value) in _PLAIN_TYPES for value in run.arguments.values()):
                request = self._pickle_request(run.arguments, None, token)
            else:  # it may take a while
                request = await self._threads.run(self._pickle_request, run.arguments, handle, token)
            kind, content = await self._answer(worker, request)
            if kind is Answer.REFUSED:
                raise self._unsendable_argument(run.arguments) or UnloadableError(
                    f"A worker process cannot load the arguments of a trial: {content}."
                )
            result, must_kill = content
            worker.has_run = True
            return cast("bytes", result)
        except RequestNotReadError:
            return None
        finally:
            if must_kill:
                await finish(functools.partial(self._kill, worker))
            else:
                self._busy.discard(worker)
                self._idle.append(worker)

    async def _load(self, worker: _Worker) -> None:
        kind, content = await self._answer(worker, self._payload)
        if kind is Answer.REFUSED:
            raise UnloadableError(f"A worker process cannot load the objective: {content}.")
        worker.is_loaded = True

    async def _answer(self, worker: _Worker, request: bytes) -> tuple[Answer, Any]:
        """Return what a worker answers.

        Raises:
            RequestNotReadError: If the worker has run trials, and died before it has read the request.
            WorkerDiedError: If the worker died otherwise.
        """
        try:
            return cast("tuple[Answer, Any]", pickle.loads(await worker.process.call(request)))  # noqa: S301 - from our own process
        except (RequestNotReadError, EOFError, ConnectionError) as error:
            if worker.has_run and isinstance(error, RequestNotReadError):
                raise
            cause = await self._threads.run(worker.process.cause_of_death)
            raise WorkerDiedError(f"The trial's worker process died: {cause}.") from None

    def _pickle_request(self, arguments: Mapping[str, Any], handle: TrialHandle | None, token: str) -> bytes:
        try:
            return dumps((dict(arguments), handle, token))
        except Exception as error:  # noqa: BLE001 - a user's class may raise anything
            raise self._unsendable_argument(arguments) or error from None

    def _unsendable_argument(self, arguments: Mapping[str, Any]) -> FixedArgumentError | None:
        for name, value in arguments.items():
            try:
                cloudpickle.loads(dumps(value))
            except Exception as refusal:  # noqa: BLE001 - a user's class may raise anything
                return FixedArgumentError(
                    f'`executor="process"`: `{self._objective.name}` cannot get its argument `{name}` in another '
                    f"process: {shown(refusal)}. {_CURE}"
                )
        return None

    async def _take_worker(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            self._busy.add(worker)
            if not worker.process.has_ended:
                return worker
            await finish(functools.partial(self._kill, worker))  # it died between two trials: no trial fails
            _raise_if_cancelled()
        given_up = threading.Event()
        # Not a task, which `asyncio.run` would cancel after an interrupt: nobody would know of the worker then.
        starting: asyncio.Future[_Worker] = self._threads.run(self._start, given_up)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            given_up.set()
            await finish(functools.partial(self._discard, starting))
            raise

    def _start(self, given_up: threading.Event) -> _Worker:
        gpu = self._gpus.pop() if self._gpus else None
        environment = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
        try:
            worker = _Worker(self._starter.start(environment, given_up), gpu)
        except BaseException:
            if self._gpus is not None and gpu is not None:
                self._gpus.append(gpu)
            raise
        self._busy.add(worker)
        return worker

    async def _discard(self, starting: asyncio.Future[_Worker]) -> None:
        """Kill a worker whose trial was given up while the worker was started."""
        await asyncio.wait([starting])
        if starting.exception() is None:
            await self._kill(starting.result())

    async def _kill(self, worker: _Worker) -> None:
        if worker not in self._busy:
            return
        await self._threads.run(worker.process.kill)
        if self._gpus is not None and worker.gpu is not None:
            self._gpus.append(worker.gpu)
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
        await asyncio.gather(*(self._threads.run(worker.process.kill) for worker in workers))
        if self._server is not None:
            await self._threads.run(self._server.close)
        await self._threads.close()


def _raise_if_cancelled() -> None:
    """Raise CancelledError if the caller was cancelled while it waited for `finish`."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _pickle(objective: Objective, make_runner: Callable[[Objective], Any]) -> bytes:
    try:
        return dumps((objective, make_runner))
    except Exception as error:
        raise InvalidObjectiveError(
            f'`executor="process"`: `{objective.name}` cannot be sent to another process: {shown(error)}. {_CURE}'
        ) from error


def _libraries_of(target: Any) -> list[str]:
    """Return the installed modules that the code of an objective uses, in the order of their names.

    The user's own modules are left to the workers: they may have done what must not be done before a fork, such as
    using a GPU.
    """
    names: set[str] = set()
    seen: set[int] = set()
    functions = [getattr(target, "task_function", target)]
    while functions:
        function = functions.pop()
        if not isinstance(function, types.FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        for used in _names_in(function.__code__):
            value = function.__globals__.get(used)
            name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
            file = getattr(sys.modules.get(name), "__file__", None) if isinstance(name, str) else None
            if "site-packages" in (file or "") or "dist-packages" in (file or ""):
                names.add(str(name))
            else:
                functions.append(value)
    return sorted(names)


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)
