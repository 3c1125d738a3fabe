"""Cuts a search of ten trials at every single step, and looks what is left: `python -m tests.sweeps`.

A step is a statement of PostgreSQL, a statement of SQLite, a write of a journal, a call of a storage's method, or a
request to flyteadmin. At each step, in a search of its own, the step fails before or after it has taken effect; or the
process is killed there, and the search is started again. Each time the study must hold just ten trials that count, and
none that runs.

The tests run every so many steps of the same sweeps: see `tests/test_sweeps.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import OperationalError

from optuna_flyte_dsl import Float, Minimize, optimize
from tests.support import own_pauses
from tests.support._compat import get_lock_file, journal_lock, journal_path
from tests.support.cutting_proxy import CuttingProxy
from tests.support.postgres import Postgres

N_TRIALS = int(os.environ.get("SWEEP_TRIALS", "10"))
_MISSES = (
    20  # of two searches, the other one may do most of the work, and leave few steps to the one that is to be killed
)
ROOT = pathlib.Path(__file__).parent.parent


def objective(x: Float(0, 1)) -> Minimize:
    return x


def is_last(step: int, stride: int, steps: int) -> bool:
    """Return whether a sweep that takes only some steps can end, to save the search that finds no further step."""
    return stride > 1 and step + stride > steps


def search(storage: str, name: str, searches: int = 1, admin: Any = None) -> list[Any]:
    """Run searches of one study at the same time. Return their studies, and their errors.

    Args:
        admin: The stand-in for flyteadmin, if the trials run there.
    """
    made = [
        optimize(
            concurrency=2,
            n_trials=N_TRIALS,
            storage=storage,
            study_name=name,
            resume=True,
            progress=False,
            initial_points=[{"x": 0.5}],
        )(objective if admin is None else _task())
        for _ in range(searches)
    ]
    if admin is not None:
        made = [_on(admin, each) for each in made]

    async def run() -> list[Any]:
        return await asyncio.gather(*(each() for each in made), return_exceptions=True)

    return asyncio.run(run())


def check(trials: list[optuna.trial.FrozenTrial], found: list[Any], step: object) -> None:
    """Check what a search has left."""
    for error in found:
        if isinstance(error, BaseException):
            raise AssertionError(step) from error
    counted = [trial for trial in trials if not trial.user_attrs.get("optuna_flyte_dsl:lost")]
    states = collections.Counter(trial.state.name for trial in trials)
    assert states["RUNNING"] == 0, (step, states)
    finished = [trial.state.name for trial in counted if trial.state.is_finished()]
    assert finished == ["COMPLETE"] * N_TRIALS, (step, states)
    assert 0.5 in [trial.params["x"] for trial in trials if "x" in trial.params], step


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Shorten the library's pauses."""
    with own_pauses() as pauses:
        pauses.storage_first, pauses.storage_longest = 0.01, 0.1
        pauses.lock_patience, pauses.lock_check, pauses.other_processes = 1.0, 0.2, 0.1
        pauses.admin_first, pauses.admin_longest = 0.01, 0.05
        pauses.poll_shortest = pauses.list_call = 0.02
        pauses.checkpoint_idle = 0.05
        yield


@contextlib.contextmanager
def partner(url: str) -> Iterator[Callable[[str], Callable[[], list[Any]]]]:
    """Yield a function that starts a search of a study in another process, and returns a function that awaits its end.

    That process stays for all searches of a sweep.
    """
    command = [sys.executable, "-W", "ignore", "-m", "tests.sweeps", "partner", url]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def end() -> list[Any]:
            errors = json.loads(process.stdout.readline())
            return [AssertionError(error) for error in errors]

        def start(name: str) -> Callable[[], list[Any]]:
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
            return end

        try:
            yield start
        finally:
            process.stdin.close()


def _be_partner(url: str) -> None:
    for line in sys.stdin:
        found = search(url, line.strip())
        print(json.dumps([repr(each) for each in found if isinstance(each, BaseException)]), flush=True)


def sweep_postgresql(server: Postgres, searches: int, *, processes: int = 1, stride: int = 1, first: int = 1) -> int:
    """Cut the connection before, and after, each statement of PostgreSQL's protocol. Return the number of cuts.

    Args:
        searches: The searches of one study that this process runs at the same time.
        processes: 2 if another process runs a further search of the study. The connections of both are cut.
    """
    with contextlib.closing(CuttingProxy(server.port)) as proxy, contextlib.ExitStack() as stack:
        url = server.url.replace(f":{server.port}/", f":{proxy.port}/")
        direct = optuna.storages.RDBStorage(server.url)
        start = stack.enter_context(partner(url)) if processes == 2 else lambda _: list
        cuts = 0
        for after in (False, True):
            for step in range(first, 100_000, stride):
                name = f"{searches} {after} {step} {time.monotonic_ns()}"
                proxy.cut(step, after=after)
                theirs = start(name)
                found = [*search(url, name, searches), *theirs()]
                trials = optuna.load_study(study_name=name, storage=direct).get_trials()
                check(trials, found, ("after" if after else "before", step))
                if not proxy.cuts:
                    break
                cuts += 1
                if is_last(step, stride, proxy.statements):
                    break
        direct.remove_session()
        direct.engine.dispose()
        return cuts


# Faults of a file or a database in this process.


class Fault:
    """Fails, or kills the process, at one step.

    Args:
        how: "before", "torn" or "after"; with "kill " in front, the process is killed there.
        is_final: Whether the error is one that does not pass.
    """

    def __init__(self, step: int, how: str, *, is_final: bool = False) -> None:
        self.steps = 0
        self._step, self._how, self._is_final = step, how, is_final
        self.has_failed = False
        self._here = threading.local()  # the searches of one process write in threads of their own
        self._lock = threading.Lock()

    def is_due(self, moment: str) -> bool:
        """Return whether this is the moment of the step of this thread's latest write."""
        return bool(self._here.step == self._step) and moment == self._how.rpartition(" ")[2]

    def hit(self, moment: str, error: Callable[[], Exception]) -> None:
        """Fail if this is the step and the moment."""
        if moment == "before":
            with self._lock:
                self.steps += 1
                self._here.step = self.steps
        if not self.is_due(moment):
            return
        self._step, self.has_failed = 0, True
        if self._how.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("a fault that does not pass") if self._is_final else error()


@contextlib.contextmanager
def journal_fault(fault: Fault) -> Iterator[None]:
    """Let a write of a journal fail: before, in the middle of a line, or after."""
    append = JournalFileBackend.append_logs

    def failing(self: Any, logs: list[dict[str, Any]]) -> None:
        def error() -> OSError:
            return OSError(5, "Input/output error")

        fault.hit("before", error)
        if fault.is_due("torn"):
            lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
            with get_lock_file(journal_lock(self)), journal_path(self).open("ab") as file:
                file.write(lines[: len(lines) // 2])
        fault.hit("torn", error)
        append(self, logs)
        fault.hit("after", error)

    JournalFileBackend.append_logs = failing
    try:
        yield
    finally:
        JournalFileBackend.append_logs = append


@contextlib.contextmanager
def sqlite_fault(fault: Fault) -> Iterator[None]:
    """Let a statement of SQLite, or a commit, fail before or after it has taken effect."""

    def error() -> OperationalError:
        return OperationalError("a statement", {}, sqlite3.OperationalError("disk I/O error"))

    def before(*_: Any) -> None:
        fault.hit("before", error)

    def after(*_: Any) -> None:
        fault.hit("after", error)

    def failing_commit(dialect: Any, connection: Any) -> None:
        fault.hit("before", lambda: sqlite3.OperationalError("disk I/O error"))
        commit(dialect, connection)
        fault.hit("after", lambda: sqlite3.OperationalError("disk I/O error"))

    commit = DefaultDialect.do_commit
    DefaultDialect.do_commit = failing_commit
    events = {"before_cursor_execute": before, "after_cursor_execute": after}
    for name, function in events.items():
        sqlalchemy.event.listen(sqlalchemy.Engine, name, function)
    try:
        yield
    finally:
        DefaultDialect.do_commit = commit
        for name, function in events.items():
            sqlalchemy.event.remove(sqlalchemy.Engine, name, function)


@contextlib.contextmanager
def call_fault(fault: Fault) -> Iterator[None]:
    """Let a call of a method of a `JournalStorage`, a read or a write, fail before or after it has taken effect."""

    def failing(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: JournalStorage, *args: Any, **kwargs: Any) -> Any:
            fault.hit("before", lambda: OSError(5, "Input/output error"))
            result = method(self, *args, **kwargs)
            fault.hit("after", lambda: OSError(5, "Input/output error"))
            return result

        return call

    names = [name for name in vars(BaseStorage) if not name.startswith("_") and name in vars(JournalStorage)]
    methods = {name: getattr(JournalStorage, name) for name in names}
    for name, method in methods.items():
        setattr(JournalStorage, name, failing(method))
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(JournalStorage, name, method)


FAULTS = {"journal": journal_fault, "sqlite": sqlite_fault, "calls": call_fault}
HOW = {"journal": ("before", "torn", "after"), "sqlite": ("before", "after"), "calls": ("before", "after")}


def storage_in(kind: str, folder: pathlib.Path) -> str:
    return f"sqlite:///{folder}/study.db" if kind == "sqlite" else str(folder / "study.journal")


def sweep_file(kind: str, searches: int = 1, *, stride: int = 1, first: int = 1, on_cluster: bool = False) -> int:
    """Let each write of a journal, statement of SQLite, or call of a storage fail. Return the number of failures.

    Args:
        searches: The searches of one study that this process runs at the same time.
        on_cluster: Whether the trials run on the stand-in for flyteadmin.
    """
    failures = 0
    for how in HOW[kind]:
        for step in range(first, 100_000, stride):
            with contextlib.ExitStack() as stack:
                folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
                storage, fault = storage_in(kind, folder), Fault(step, how)
                admin = stack.enter_context(_instant_admin(folder)) if on_cluster else None
                with FAULTS[kind](fault):
                    found = search(storage, "study", searches, admin)
                check(trials_in(kind, storage), found, (how, step))
                if fault.steps < step:
                    break
                # One of two searches may find the database locked, so that its statement has no "after".
                assert fault.has_failed or searches > 1, (how, step)
                failures += fault.has_failed
                if is_last(step, stride, fault.steps):
                    break
    return failures


def sweep_final_errors(kind: str, *, stride: int = 1, first: int = 1) -> int:
    """Let each write of a journal, or each statement of SQLite, fail for good. Return the number of failures.

    Such an error ends a search, unless it comes where Optuna makes another one of it. No trial may be left running.
    """
    failures = 0
    for how in ("before", "after"):
        for step in range(first, 100_000, stride):
            with tempfile.TemporaryDirectory() as folder:
                storage, fault = storage_in(kind, pathlib.Path(folder)), Fault(step, how, is_final=True)
                with FAULTS[kind](fault):
                    found = search(storage, "study")
                if fault.steps < step:
                    break
                assert fault.has_failed, (how, step)
                failures += 1
                with contextlib.suppress(KeyError):  # the study was not stored
                    states = [trial.state.name for trial in trials_in(kind, storage)]
                    assert "RUNNING" not in states, (how, step, found, states)
    return failures


def sweep_kills(kind: str, searches: int = 1, *, stride: int = 1, first: int = 1) -> int:
    """Kill a process at each write of a journal, or at each statement of SQLite, and start its search again.

    The searches run in children that are forked from a process without threads.

    Args:
        searches: 2 if another process, which is not killed, runs a search of the same study meanwhile.
    """
    numbers = map(str, (searches, stride, first))
    command = [sys.executable, "-W", "ignore", "-m", "tests.sweeps", "kills-of", kind, *numbers]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(json.loads(done.stdout.splitlines()[-1]))


def _kills_of(kind: str, searches: int, stride: int, first: int) -> int:
    with tempfile.TemporaryDirectory() as folder:  # what the children need is imported here, once
        search(storage_in(kind, pathlib.Path(folder)), "study")
    assert threading.active_count() == 1, "only a process without threads may be forked"
    kills = 0
    for how in HOW[kind]:
        missed = 0
        for step in range(first, 100_000, stride):
            with tempfile.TemporaryDirectory() as folder:
                storage = storage_in(kind, pathlib.Path(folder))
                fault = Fault(step, f"kill {how}")
                with FAULTS[kind](fault):
                    killed = _child(storage, fault)
                others = [_child(storage) for _ in range(searches - 1)]
                code, steps = _end_of(killed)
                if code == -signal.SIGKILL:
                    others.append(_child(storage))
                assert [_end_of(child)[0] for child in others] == [0] * len(others), (how, step)
                if code != -signal.SIGKILL:  # it had fewer steps
                    assert (code, steps < step) == (0, True), (how, step, code, steps)
                    missed += 1
                    if missed > (_MISSES if searches > 1 and stride == 1 else 0):
                        break
                    continue
                missed = 0
                check(trials_in(kind, storage), [], (how, step))
                kills += 1
    return kills


def _child(storage: str, fault: Fault | None = None) -> tuple[int, int]:
    """Run the search in a forked child. Return its process id, and the pipe to which it writes its fault's steps."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            errors = [each for each in search(storage, "study") if isinstance(each, BaseException)]
            for error in errors:
                print(repr(error), file=sys.stderr)
            sys.stderr.flush()
            os.write(writer, str(fault.steps if fault is not None else 0).encode())
            os._exit(len(errors))
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            sys.stderr.flush()
            os._exit(99)
    os.close(writer)
    return child, reader


def _end_of(started: tuple[int, int]) -> tuple[int, int]:
    """Await a child.

    Returns:
        The child's exit code; below 0, the signal that has ended the child. The number of the fault's steps in a child
        that was not killed.
    """
    child, reader = started
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(reader) as pipe:
        return code, int(pipe.read() or 0)


def trials_in(kind: str, storage: str) -> list[optuna.trial.FrozenTrial]:
    if kind != "sqlite":
        opened: Any = optuna.storages.JournalStorage(JournalFileBackend(storage))
        return optuna.load_study(study_name="study", storage=opened).get_trials()
    opened = optuna.storages.RDBStorage(storage)
    try:
        return optuna.load_study(study_name="study", storage=opened).get_trials()
    finally:
        opened.engine.dispose()


# Requests to flyteadmin.


def _instant_admin(folder: pathlib.Path) -> Any:
    """Return a stand-in for flyteadmin, on which each trial takes 0.05 s."""
    from flyteidl.core import literals_pb2

    from tests.support.flyteadmin import FlyteAdmin, Succeeded

    def outcome(execution: Any) -> Succeeded:
        outputs = literals_pb2.LiteralMap()
        outputs.literals["o0"].CopyFrom(execution.inputs.literals["x"])
        return Succeeded(outputs, 0.05)

    return FlyteAdmin(folder / "flyte", instant=outcome)


def sweep_requests(*, stride: int = 1, first: int = 1) -> int:
    """Lose each request of a search to flyteadmin, lose its answer, or send it twice. Return the number of faults."""

    def run(admin: Any, _: pathlib.Path, begin: Callable[[], None]) -> optuna.Study:
        begin()
        return _on(admin, _task_search()).run_sync()

    return _sweep_requests(run, stride, first)


def sweep_pod_requests(*, stride: int = 1, first: int = 1) -> int:
    """Do the same to the requests of an eager pod that continues a killed search. Return the number of faults."""
    from tests.support.eager_pod import Pod, killed_after

    def run(admin: Any, folder: pathlib.Path, begin: Callable[[], None]) -> optuna.Study:
        train = _task_search()
        Pod(admin, folder, 0).run(lambda: killed_after(admin, N_TRIALS // 2, train()))
        begin()
        return Pod(admin, folder, 1).run(train)

    return _sweep_requests(run, stride, first)


def _task() -> Any:
    sys.path.insert(0, str(ROOT / "tests" / "pods"))
    import quick

    return quick.train.task


def _task_search() -> Any:
    return optimize(_task(), concurrency=2, n_trials=N_TRIALS, progress=False, seed=1)


def _on(admin: Any, made: Any) -> Any:
    from flytekit.configuration import Image, ImageConfig

    return made.on(admin.remote(), image_config=ImageConfig(Image("default", "example.com/image", "1")))


def _sweep_requests(
    run: Callable[[Any, pathlib.Path, Callable[[], None]], optuna.Study], stride: int, first: int
) -> int:
    """Run a search for each fault.

    Args:
        run: Runs the search, and calls its last argument when requests begin to count.
    """
    faults = 0
    for how in ("request", "answer", "doubled"):
        for step in range(first, 100_000, stride):
            with tempfile.TemporaryDirectory() as folder, _instant_admin(pathlib.Path(folder)) as admin:

                def begin(admin: Any = admin, step: int = step, how: str = how) -> None:
                    admin.fault_at(sum(admin.counts.values()) + step, how)

                study = run(admin, pathlib.Path(folder), begin)
                states = [trial.state.name for trial in study.trials]
                assert states == ["COMPLETE"] * N_TRIALS, (how, step, admin.faulty, states)
                assert len(admin.executions) == N_TRIALS, (how, step, admin.faulty)
                assert not admin.running(), (how, step, admin.faulty)
                assert not admin.overwritten or how == "doubled", (how, step, admin.faulty)
                if admin.faulty is None:
                    break
                faults += 1
    return faults


KINDS = ["postgresql", *FAULTS, "flyteadmin"]


def _sweep_all_of_postgresql(stride: int) -> None:
    with contextlib.closing(Postgres()) as server:
        for searches, processes in ((1, 1), (2, 1), (1, 2)):
            cuts = sweep_postgresql(server, searches, processes=processes, stride=stride)
            print(f"PostgreSQL, {searches} at once, {processes} processes: {cuts} cuts", flush=True)


def _sweep_all_of_a_file(kind: str, stride: int) -> None:
    for searches in (1, 2):
        print(f"{kind}, {searches} at once: {sweep_file(kind, searches, stride=stride)} failures", flush=True)
        print(f"{kind}, {searches} processes: {sweep_kills(kind, searches, stride=stride)} kills", flush=True)
    print(f"{kind}: {sweep_final_errors(kind, stride=stride)} final errors", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=1, help="sweep every so many steps")
    parser.add_argument("--only", action="append", choices=KINDS, help="sweep this alone; the option can be repeated")
    parser.add_argument("internal", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with quick():
        if options.internal:
            if options.internal[0] == "partner":
                _be_partner(options.internal[1])
                return
            _, kind, *numbers = options.internal
            print(_kills_of(kind, *map(int, numbers)))
            return
        stride = options.stride
        for kind in options.only or KINDS:
            if kind == "postgresql":
                _sweep_all_of_postgresql(stride)
            elif kind == "calls":
                for where, on_cluster in {"here": False, "on a cluster": True}.items():
                    failures = sweep_file("calls", stride=stride, on_cluster=on_cluster)
                    print(f"calls of a storage, {where}: {failures} failures", flush=True)
            elif kind == "flyteadmin":
                for where, sweep in {"from a laptop": sweep_requests, "from a pod": sweep_pod_requests}.items():
                    print(f"flyteadmin, {where}: {sweep(stride=stride)} lost or doubled requests", flush=True)
            else:
                _sweep_all_of_a_file(kind, stride)
        print(f"Each search ended with {N_TRIALS} trials that count, and none running.")


if __name__ == "__main__":
    main()
