"""Runs trials in worker processes on this machine: for work that needs a core of its own, may crash, or may hang."""

import asyncio
import contextlib
import functools
import os
import pickle
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle
import psutil
from loky import ProcessPoolExecutor
from loky.process_executor import BrokenProcessPool, ShutdownExecutorError
from optuna.trial import Trial

from optuna_flyte_dsl._compat.loky import kill_workers_at_exit, python_is_exiting
from optuna_flyte_dsl._compat.optuna import refresh
from optuna_flyte_dsl._foreign_errors import is_unserialized, worker_death
from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl._threads import Threads, finish
from optuna_flyte_dsl.engines.remote_trial.handle import TrialHandle
from optuna_flyte_dsl.engines.remote_trial.server import TrialServer
from optuna_flyte_dsl.engines.worker_process import WatchedInitializer, load, run_trial
from optuna_flyte_dsl.errors import FixedArgumentError, InvalidObjectiveError, PythonExitError, WorkerDiedError
from optuna_flyte_dsl.search.runner import TrialRun
from optuna_flyte_dsl.space.objective import Objective

_CURE = "Open files, locks and connections cannot be sent: create them inside the objective."


class _Worker:
    """One worker process.

    Args:
        gpu: The device that the worker process sees; `None` for all devices.
    """

    def __init__(self, gpu: int | str | None, payload: bytes) -> None:
        self.gpu = gpu
        env = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
        # An initializer gets the payload, so that every process which loky starts has the objective.
        self.pool = ProcessPoolExecutor(
            max_workers=1, env=env, initializer=WatchedInitializer(os.getpid()), initargs=(os.getpid(), payload)
        )
        kill_workers_at_exit(self.pool)
        self.pid: int | None = None  # the id of the process and its group; `None` until the objective is loaded

    @property
    def is_alive(self) -> bool:
        with contextlib.suppress(psutil.Error):
            return bool(psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE)
        return False

    def kill(self) -> None:
        """Kill a worker process and its children. Children outlive a worker that the operating system has killed."""
        self.pool.shutdown(wait=True, kill_workers=True)
        if self.pid is not None and hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)


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
        self._gpus: list[int | str | None] | None = list(reversed(gpus)) if gpus is not None else None
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._threads = Threads()
        self._server: TrialServer | None = None
        self._lock = threading.Lock()

    async def run(self, run: TrialRun) -> Any:
        handle = await self._threads.run(self._serve, run.trial) if self._objective.takes_trial else None
        worker = await self._take_worker()
        must_kill = True
        try:
            if worker.pid is None:
                worker.pid = await self._call(worker, load)
            run.begin()
            token = self._server.token_of(handle.trial) if self._server is not None and handle is not None else ""
            result, must_kill = await self._call(worker, run_trial, dict(run.arguments), handle, token)
        except (pickle.PicklingError, BrokenProcessPool, RuntimeError) as error:
            if (wrong := self._unsendable_argument(run, error)) is not None:
                raise wrong from None
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

    def _unsendable_argument(self, run: TrialRun, error: Exception) -> FixedArgumentError | None:
        if not (isinstance(error, pickle.PicklingError) or is_unserialized(error)):
            return None
        for name, value in run.arguments.items():
            try:
                cloudpickle.loads(cloudpickle.dumps(value))
            except Exception as refusal:  # noqa: BLE001 - a user's class may raise anything
                return FixedArgumentError(
                    f'`executor="process"`: `{self._objective.name}` cannot get its argument `{name}` in another '
                    f"process: {shown(refusal)}. {_CURE}"
                )
        return None

    async def _call(self, worker: _Worker, function: Callable[..., Any], *args: Any) -> Any:
        # `submit` is called in a thread, because a new executor starts its process in `submit`.
        future = asyncio.wrap_future(await self._threads.run(lambda: worker.pool.submit(function, *args)))
        try:
            # Loky's own future is not cancelled: loky's thread, which ends the worker, fails on a cancelled future.
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda over: over.cancelled() or over.exception())  # marks the error as retrieved
            raise

    async def _take_worker(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            self._busy.add(worker)
            if worker.is_alive:
                return worker
            # The worker has died between two trials, so no trial fails.
            await finish(functools.partial(self._give_back, worker, kill=True))
        worker = _Worker(self._gpus.pop() if self._gpus else None, self._payload)
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
            f'`executor="process"`: `{objective.name}` cannot be sent to another process: {shown(error)}. {_CURE}'
        ) from error
