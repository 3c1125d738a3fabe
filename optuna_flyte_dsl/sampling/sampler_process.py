"""`SamplerProcess`: a process beside this one, in which a GPSampler samples.

What a GPSampler imports takes seconds, in which other threads of its process would find half-made modules; its
computations would hold up the threads of running trials.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import functools
import importlib
import json
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._text import shown

_PROGRAM = """
import json, sys
sys.path[:], parent, is_background = json.loads(sys.argv[1])
from optuna_flyte_dsl.sampling.sampler_process import work
work(parent, is_background)
"""
_IMPORTS = ("torch", "scipy.optimize", "scipy.stats")
_NICENESS = 10
_STATUS_PATIENCE = 1.0  # seconds that the exit code of a process that has ended is waited for
_SHOWN_OUTPUT = 1000  # characters
_N_POINTS = 1000  # that the process keeps
_N_SAMPLERS = 8  # that the process keeps
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # the matrices are small
# A GPSampler takes and frees hundreds of megabytes for each point. By default, glibc gives such memory back to the
# system at once, and gets it anew page by page, which takes half of the point's time.
_KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


class SamplerProcessError(Exception):
    """The process that samples has ended, or its sampler has raised an error."""


class Row(NamedTuple):
    """What a sampler learns from a trial."""

    state: TrialState
    values: list[float] | None
    point: tuple[float, ...]  # in Optuna's internal representation, in the order of the space
    constraints: dict[str, Any]  # the system attributes of the trial's constraints


class SamplingRequest(NamedTuple):
    """What is sent to the process. All of it can be pickled: indices stand in the place of choices."""

    id: int
    make_sampler: Callable[[], BaseSampler]
    search: int | None  # the sampler is kept under this number for the next request; `None` for a new sampler each time
    directions: list[StudyDirection]
    space: dict[str, BaseDistribution]
    rows: list[Row]
    earlier: list[int]  # the ids of earlier requests: the sampler learns that trials will run at their points


class SampledPoint(NamedTuple):
    """A point in Optuna's internal representation, in the order of the space."""

    point: tuple[float, ...]
    seconds: float  # how long the sampler has taken


def space_of_indices(space: Mapping[str, BaseDistribution]) -> dict[str, BaseDistribution]:
    """Return a space with an index in the place of each choice, which may be any object."""
    return {
        name: CategoricalDistribution(range(len(kind.choices))) if isinstance(kind, CategoricalDistribution) else kind
        for name, kind in space.items()
    }


class Memory:
    """What the process keeps between two requests: the latest points, and samplers, which have fitted models."""

    def __init__(self) -> None:
        self.points: dict[int, tuple[float, ...]] = {}  # by the id of the request
        self._samplers: dict[int, BaseSampler] = {}  # by the number of the search

    def note(self, request: SamplingRequest, point: tuple[float, ...]) -> None:
        """Keep a point."""
        self.points[request.id] = point
        if len(self.points) > _N_POINTS:
            del self.points[next(iter(self.points))]

    def sampler(self, request: SamplingRequest) -> BaseSampler:
        """Return the sampler of a request."""
        if request.search is None:
            return request.make_sampler()
        sampler = self._samplers.pop(request.search, None) or request.make_sampler()
        self._samplers[request.search] = sampler  # as the latest one
        if len(self._samplers) > _N_SAMPLERS:
            del self._samplers[next(iter(self._samplers))]
        return sampler


def sample(request: SamplingRequest, memory: Memory) -> tuple[float, ...]:
    """Sample a point, in the process that samples."""
    earlier = [memory.points[each] for each in request.earlier if each in memory.points]
    rows = [*request.rows, *(Row(TrialState.RUNNING, None, point, {}) for point in earlier)]
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, directions=request.directions, sampler=memory.sampler(request))
    study_id = storage.get_study_id_from_name(study.study_name)
    for number, row in enumerate(rows):
        trial = FrozenTrial(
            number=number,
            trial_id=number,
            state=row.state,
            value=None,
            values=row.values,
            datetime_start=None,
            datetime_complete=None,
            params={
                name: kind.to_external_repr(each)
                for (name, kind), each in zip(request.space.items(), row.point, strict=True)
            },
            distributions=request.space,
            user_attrs={},
            system_attrs=row.constraints,
            intermediate_values={},
        )
        storage.create_new_trial(study_id, trial)
    params = study.ask(dict(request.space)).params
    point = tuple(kind.to_internal_repr(params[name]) for name, kind in request.space.items())
    memory.note(request, point)
    return point


class SamplerProcess:
    """Samples in another process, one point after the other. The process starts at the first request.

    It ends some time after the last request, and with this process. A process that was killed is replaced, and gets the
    request again.

    Args:
        is_background: Whether the process leaves the processor to other processes.
        imports: The modules that it imports when it starts.
    """

    def __init__(self, *, is_background: bool, imports: Sequence[str]) -> None:
        self._is_background = is_background
        self._imports = tuple(imports)
        self._requests: queue.SimpleQueue[tuple[SamplingRequest, concurrent.futures.Future[SampledPoint]]] = (
            queue.SimpleQueue()
        )
        self._lock = threading.Lock()
        self._n_open = 0  # requests without an answer
        self._has_thread = False
        self._process: subprocess.Popen[bytes] | None = None
        self._printed: IO[bytes] | None = None  # the error output of the process
        self._is_ready = False
        self._is_closed = False

    @property
    def is_busy(self) -> bool:
        """Whether a request has no answer yet."""
        return self._n_open > 0

    @property
    def is_ready(self) -> bool:
        """Whether the process is running, and has imported its modules."""
        return self._is_ready

    def submit(self, request: SamplingRequest) -> concurrent.futures.Future[SampledPoint]:
        """Ask for a point. The call does not wait.

        The future's errors are those of `pickle` for a request, and SamplerProcessError.
        """
        future: concurrent.futures.Future[SampledPoint] = concurrent.futures.Future()
        with self._lock:
            if not self._has_thread:
                threading.Thread(target=self._serve, name="optuna_flyte_dsl samples", daemon=True).start()
                self._has_thread = True
            self._n_open += 1
            self._requests.put((request, future))
        return future

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def close(self) -> None:
        """End the process. Requests without an answer get an error, and so do later ones."""
        self._is_closed = True
        self._stop()

    def _serve(self) -> None:
        while True:
            try:
                request, future = self._requests.get(timeout=pauses.sampler_idle)
            except queue.Empty:
                with self._lock:
                    if self._n_open:
                        continue
                    self._stop()
                    self._has_thread = False
                    return
            if not future.set_running_or_notify_cancel():
                with self._lock:
                    self._n_open -= 1
                continue
            try:
                answer: SampledPoint | BaseException = self._answer(pickle.dumps(request))
            except BaseException as error:  # noqa: BLE001 - the future raises it
                answer = error
            with self._lock:
                self._n_open -= 1
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _answer(self, request: bytes) -> SampledPoint:
        reason = ""
        for _ in range(2):  # the process may have been killed
            try:
                process = self._process or self._start()
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(request)
                process.stdin.flush()
                answer = pickle.load(process.stdout)  # noqa: S301 - from our own process
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                reason = self._cause_of_death() or f"its process does not start: {shown(error)}"
                if self._is_closed:
                    reason = "its process was ended"
                    break
                continue
            if isinstance(answer, SampledPoint):
                return answer
            raise SamplerProcessError(answer)
        raise SamplerProcessError(reason)

    def _start(self) -> subprocess.Popen[bytes]:
        if self._is_closed:
            raise EOFError
        arguments = json.dumps([list(map(str, sys.path)), os.getpid(), self._is_background])
        with contextlib.ExitStack() as files:
            printed = files.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(  # noqa: S603 - this interpreter
                [sys.executable, "-P", "-c", _PROGRAM, arguments],
                env={**_KEEP_MEMORY, **os.environ, **_ONE_THREAD},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                start_new_session=True,  # Ctrl-C is for the searching process
            )
            self._printed = printed
            files.pop_all()  # the file is closed with the process
        self._process = process
        if self._is_closed:
            self._stop()
            raise EOFError
        assert process.stdin is not None
        assert process.stdout is not None
        pickle.dump(self._imports, process.stdin)
        process.stdin.flush()
        if error := pickle.load(process.stdout):  # noqa: S301 - from our own process
            self._stop()
            raise SamplerProcessError(error)
        self._is_ready = True
        return process

    def _cause_of_death(self) -> str:
        """Return why the process has ended, in words; nothing if none was started."""
        process, printed = self._process, self._printed
        if process is None or printed is None:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STATUS_PATIENCE)
        printed.seek(max(0, printed.seek(0, os.SEEK_END) - _SHOWN_OUTPUT))
        lines = printed.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        self._stop()
        return f"its process has ended (exit code {process.returncode}){last and f': {last}'}"

    def _stop(self) -> None:
        """Kill the process."""
        process, self._process = self._process, None
        self._is_ready = False
        if process is None:
            return
        process.kill()
        process.wait()
        for file in (process.stdin, process.stdout, self._printed):
            with contextlib.suppress(OSError, ValueError):  # what was not sent; another thread may be reading
                assert file is not None
                file.close()


def sampler_process(*, is_background: bool) -> SamplerProcess:
    """Return the process for GPSamplers. All samplers of this process share it, for its start takes seconds."""
    _register()
    with _making:
        process = _processes.get(is_background)
        if process is None or process.is_closed:
            process = _processes[is_background] = SamplerProcess(is_background=is_background, imports=_IMPORTS)
        return process


_processes: dict[bool, SamplerProcess] = {}  # by whether they are in the background
_making = threading.Lock()


@functools.cache
def _register() -> None:
    atexit.register(_close_all, os.getpid())
    os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    """Forget the processes of the parent: a forked child has none of the threads that serve."""
    global _making
    _making = threading.Lock()
    _processes.clear()


def _close_all(owner: int) -> None:
    if os.getpid() == owner:
        for process in _processes.values():
            process.close()


def work(parent: int, is_background: bool) -> None:
    """Answer requests until the process has ended that sends them. Tell first whether the imports have failed."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # a sampler that reads its input must not read a request
    os.dup2(2, 1)  # what a sampler prints must not mix with the answers
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if is_background:
        os.nice(_NICENESS)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with contextlib.suppress(EOFError, BrokenPipeError):
        answer: SampledPoint | str = _error_of_imports(pickle.load(requests))  # noqa: S301 - from our own process
        memory = Memory()
        while True:
            answers.write(pickle.dumps(answer))
            answers.flush()
            answer = _answer_to(pickle.load(requests), memory)  # noqa: S301 - so is this
    os._exit(0)


def _error_of_imports(names: Sequence[str]) -> str:
    try:
        for name in names:
            importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a package may be broken in any way
        return shown(error)
    return ""


def _answer_to(request: SamplingRequest, memory: Memory) -> SampledPoint | str:
    begun = time.perf_counter()
    try:
        point = sample(request, memory)
    except Exception as error:  # noqa: BLE001 - the search goes on without the sampler
        return shown(error)
    return SampledPoint(point, time.perf_counter() - begun)


def _watch(parent: int) -> None:
    """End this process with the one that has started it. Forked children of that one may keep its pipes open."""
    while os.getppid() == parent:
        time.sleep(pauses.parent_check)
    os._exit(0)
