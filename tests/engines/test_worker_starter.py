"""How worker processes start, and what they see of the process that has started them."""

import asyncio
import concurrent.futures
import contextlib
import gc
import importlib.util
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types

import numpy as np
import psutil
import pytest

from optuna_flyte_dsl import Float
from optuna_flyte_dsl.engines import process_runner, worker_starter
from optuna_flyte_dsl.study.attributes import ERROR
from tests.support import in_new_process, wait_until, worker_processes
from tests.support.small_searches import search, states

pytestmark = pytest.mark.newest


both_ways = pytest.mark.parametrize("fork", [True, False], ids=["forked", "alone"], indirect=True)


@pytest.fixture(autouse=True)
def fork(request, monkeypatch):
    is_safe = getattr(request, "param", True)
    monkeypatch.setattr(worker_starter, "_FORK_IS_SAFE", is_safe)
    yield is_safe
    wait_until(lambda: not worker_processes())


def run(objective, n_trials=2, concurrency=1, **options):
    return search(objective, n_trials=n_trials, concurrency=concurrency, executor="process", **options).run_sync()


def processes_with(mark):
    """Return the processes whose environment holds a text as the variable MARK."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if each.environ().get("MARK") == mark and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found


def servers():
    found = []
    for each in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one, too
            if "fork_server" in " ".join(each.cmdline()):
                found.append(each)
    return found


@both_ways
def test_a_worker_sees_the_environment_of_now(monkeypatch, tmp_path, capfd):
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("SEEN", name)
        monkeypatch.syspath_prepend(folder)
        (folder / f"module_{name}.py").write_text("value = 1.0")

        def looks(x: Float(0, 1)) -> float:
            import importlib

            os.write(1, f"{os.environ['SEEN']} {os.getcwd()}\n".encode())
            return importlib.import_module(f"module_{os.environ['SEEN']}").value

        study = run(looks, n_trials=1)
        assert states(study) == ["COMPLETE"], study.trials[0].user_attrs
        assert capfd.readouterr().out.split() == [name, str(folder)]


@both_ways
def test_a_worker_finds_a_module_whose_folder_has_left_the_path(tmp_path, monkeypatch):
    """`pyflyte run file.py` has the file's folder on the path while it imports the file."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "objectives.py").write_text(
        "from optuna_flyte_dsl import Float\n"
        "def body(x): return x\n"
        "def objective(x: Float(0, 1)) -> float: return body(x)\n"
    )
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        module = importlib.import_module("package.objectives")
    try:
        assert states(run(module.objective)) == ["COMPLETE"] * 2
    finally:
        for name in ("package", "package.objectives"):
            del sys.modules[name]


def test_a_worker_finds_the_users_module_that_has_the_name_of_pythons_own(tmp_path, monkeypatch):
    (tmp_path / "pyclbr.py").write_text("value = 1.0")
    (tmp_path / "beside_pyclbr.py").write_text(
        "import pyclbr\n"
        "from optuna_flyte_dsl import Float\n"
        "def objective(x: Float(0, 1)) -> float: return x * pyclbr.value\n"
    )
    monkeypatch.delitem(sys.modules, "pyclbr", raising=False)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        module = importlib.import_module("beside_pyclbr")
    try:
        assert states(run(module.objective)) == ["COMPLETE"] * 2
    finally:
        for name in ("pyclbr", "beside_pyclbr"):
            del sys.modules[name]


def test_a_module_tells_its_folder_if_it_is_found_by_its_name():
    folder_of = worker_starter.folder_of
    assert folder_of("package.module", "/a/b/package/module.py") == "/a/b"
    assert folder_of("package", "/a/b/package/__init__.py") == "/a/b"
    assert folder_of("module", "/module.py") == "/"
    assert folder_of("loaded_as", "/a/module.py") is None
    assert folder_of("other.module", "/a/package/module.py") is None


def test_modules_that_are_loaded_when_they_are_used_are_not_loaded(tmp_path, monkeypatch):
    (tmp_path / "broken_when_loaded.py").write_text("raise RuntimeError('loaded')")
    monkeypatch.syspath_prepend(tmp_path)
    spec = importlib.util.find_spec("broken_when_loaded")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)

    def works(x: Float(0, 1)) -> float:
        return x

    assert states(run(works)) == ["COMPLETE"] * 2
    with pytest.raises(RuntimeError, match="loaded"):
        _ = module.anything


def test_what_only_claims_to_be_a_module_does_no_harm(monkeypatch):
    class Claims:
        __slots__ = ()
        __class__ = types.ModuleType

    monkeypatch.setitem(sys.modules, "claims_to_be_a_module", Claims())

    def works(x: Float(0, 1)) -> float:
        return x

    assert states(run(works)) == ["COMPLETE"] * 2


def test_a_start_with_a_large_environment_can_be_given_up(monkeypatch):
    monkeypatch.setattr(worker_starter, "SERVER", "import time; time.sleep(600)  # a fork_server that imports")
    for index in range(4):
        monkeypatch.setenv(f"LARGE_{index}", "x" * 100_000)
    starter, given_up = worker_starter.WorkerStarter([[]]), threading.Event()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waits = pool.submit(starter.start, {}, given_up)
        wait_until(servers)
        given_up.set()
        with pytest.raises(worker_starter.StartGivenUpError):
            waits.result(30)
    starter.close()


@pytest.mark.parametrize("objective", ["async def", "@fl.task\ndef"])
def test_an_interrupt_while_workers_start_ends_the_search(objective):
    """Flytekit's handler of Ctrl-C exits, so that asyncio cancels all tasks of its event loop."""
    program = (
        "import os, signal, time, flytekit as fl\n"
        "from optuna_flyte_dsl import Float, optimize\n"
        "from optuna_flyte_dsl.engines.worker_starter import WorkerStarter\n"
        f"{objective} works(x: Float(0, 1)) -> float: return x\n"
        "start = WorkerStarter.start\n"
        "def interrupted(*args):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(0.2)\n"
        "    return start(*args)\n"
        "WorkerStarter.start = interrupted\n"
        "optimize(works, n_trials=9, concurrency=2, executor='process', progress=False).run_sync()\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        (file := pathlib.Path(folder) / "program.py").write_text(program)
        done = subprocess.run([sys.executable, file], timeout=60, check=False, env={**os.environ, "MARK": folder})
    assert done.returncode == 1
    wait_until(lambda: not processes_with(folder))


def test_a_script_is_not_run_again_in_a_worker():
    def main_of_worker(x: Float(0, 1)) -> float:
        main = sys.modules["__main__"]
        return float(getattr(main, "__file__", None) is None)

    assert [trial.value for trial in run(main_of_worker).trials] == [1.0, 1.0]


def test_workers_draw_different_random_numbers():
    def draws(x: Float(0, 1)) -> float:
        import time

        time.sleep(0.2)
        return np.random.rand()

    study = run(draws, n_trials=4, concurrency=4)
    assert len({trial.value for trial in study.trials}) == 4


FORKS = "os.fork() or __import__('time').sleep(600); os._exit(3)"


@pytest.mark.parametrize(
    ("fork", "end", "said"),
    [
        (True, "os._exit(7)", "exit code 7"),
        (True, "os.kill(os.getpid(), 9)", "SIGKILL"),
        (True, "os.kill(os.getpid(), 11)", "a segmentation fault (SIGSEGV)"),
        (True, "os.kill(os.getpid(), 15)", "signal 15"),
        (True, FORKS, "exit code 3"),
        (False, FORKS, "exit code 3"),
    ],
    indirect=["fork"],
)
def test_the_cause_of_a_death_is_named(end, said):
    def dies(x: Float(0, 1)) -> float:
        exec(end, {"os": os})
        return x

    study = run(dies, n_trials=1)
    assert states(study) == ["FAIL"]
    assert said in study.trials[0].user_attrs[ERROR]


def test_a_worker_that_closes_its_files_is_given_up(monkeypatch):
    monkeypatch.setattr(worker_starter, "_STATUS_PATIENCE", 0.1)

    # Async: it blocks the event loop, which in another thread would see that its files are gone.
    async def closes(x: Float(0, 1)) -> float:
        import time

        os.closerange(3, 1000)
        time.sleep(600)
        return x

    study = run(closes, n_trials=1)
    assert "it has closed its connection" in study.trials[0].user_attrs[ERROR]


def test_large_arguments_and_errors_arrive():
    def sums(x: Float(0, 1), data: object) -> float:
        if x > 2:
            return x
        raise ValueError("long" * 2**20 + str(len(data)))

    study = search(sums, n_trials=1, concurrency=1, executor="process").run_sync(data=b"x" * 2**24)
    assert states(study) == ["FAIL"]
    assert study.trials[0].user_attrs[ERROR].startswith("ValueError: longlong")


def test_a_server_that_dies_is_replaced():
    def works(x: Float(0, 1)) -> float:
        return x

    run(works)
    for server in servers():
        os.kill(server.pid, signal.SIGKILL)
    assert states(run(works)) == ["COMPLETE"] * 2


def works_well(x: Float(0, 1)) -> float:
    return x


def left_after_many_trials(fork, folder):
    """Return what is open after a first search, and after two more, of 1,000 trials by fork; and their files."""

    def opened():
        gc.collect()
        n_semaphores = pathlib.Path("/proc/self/maps").read_text().count("/dev/shm/")
        return len(os.listdir("/proc/self/fd")), len(psutil.Process().children(recursive=True)), n_semaphores

    worker_starter._FORK_IS_SAFE = fork
    tempfile.tempdir = str(folder)
    seen = []
    for n_trials in (10, 500, 500) if fork else (4, 4, 4):  # a new interpreter imports for a second
        study = run(works_well, n_trials=n_trials, concurrency=min(10, n_trials))
        assert states(study) == ["COMPLETE"] * n_trials
        wait_until(lambda: not worker_processes())
        seen.append(opened())
    return seen, os.listdir(folder)


@both_ways
def test_nothing_is_left_after_many_trials(fork, tmp_path):
    seen, files = in_new_process(left_after_many_trials, fork, tmp_path)
    assert len(set(seen)) == 1
    assert files == []


def test_servers_are_kept_for_the_next_search():
    def works(x: Float(0, 1)) -> float:
        return x

    run(works)
    first = {each.pid for each in servers()}
    run(works)
    assert {each.pid for each in servers()} == first != set()


def test_a_system_without_processes_says_so(monkeypatch):
    def works(x: Float(0, 1)) -> float:
        return x

    monkeypatch.setattr(worker_starter, "SERVER", "raise SystemExit(3)")
    starter = worker_starter.WorkerStarter([["nothing"]])
    monkeypatch.setattr("optuna_flyte_dsl.engines.process_runner.starter_of", lambda _: starter)
    study = run(works, n_trials=1)
    assert "The process that starts worker processes has died twice" in study.trials[0].user_attrs[ERROR]


def searches_in_a_forked_child():
    """Return how a search ended in a child that was forked while another thread had the lock of its starter."""

    def works(x: Float(0, 1)) -> float:
        return x

    def waits(*arguments):
        starts.set()
        assert forked.wait(60)
        return sent(*arguments)

    starts, forked, sent = threading.Event(), threading.Event(), socket.send_fds
    socket.send_fds = waits
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(run, works)
        assert starts.wait(60)
        child = os.fork()
        socket.send_fds = sent
        if child == 0:
            os._exit(0 if states(run(works)) == ["COMPLETE"] * 2 else 1)
        forked.set()
        assert states(running.result()) == ["COMPLETE"] * 2
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.timeout(120)
def test_a_child_that_was_forked_while_a_worker_started_can_search():
    assert in_new_process(searches_in_a_forked_child) == 0


def too_many_files(n_free, go):
    """Return how the trials of a search ended beside which another one could start no worker, and that one's error."""

    def works(x: Float(0, 1)) -> float:
        while not go.exists():
            time.sleep(0.01)
        return x

    def asks(x: Float(0, 1)) -> float:
        return x

    with concurrent.futures.ThreadPoolExecutor() as pool:
        other = pool.submit(run, works, n_trials=2, concurrency=2)
        wait_until(lambda: len(worker_processes()) == 2)
        optimizer = search(asks, n_trials=1, executor="process")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

        async def main():
            running = asyncio.ensure_future(optimizer())
            taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(10)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, hard))
            for file in taken[-n_free:]:
                os.close(file)
            try:
                return await running
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        study = asyncio.run(main())
        go.touch()
        return states(other.result()), [trial.user_attrs.get(ERROR) for trial in study.trials]


@pytest.mark.parametrize("n_free", [1, 2, 3])
def test_a_start_without_a_free_file_ends_no_other_worker(n_free, tmp_path):
    others, (error,) = in_new_process(too_many_files, n_free, tmp_path / "go")
    assert others == ["COMPLETE"] * 2
    assert "The system starts no worker process: [Errno 24] Too many open files" in error


def test_a_server_that_cannot_take_a_request_is_kept(monkeypatch):
    """The server itself may have too many open files."""

    def works(x: Float(0, 1)) -> float:
        return x

    run(works)
    before = {each.pid for each in servers()}
    sent = socket.send_fds
    monkeypatch.setattr(socket, "send_fds", lambda control, parts, files: sent(control, parts, files[:3]))
    monkeypatch.setattr(worker_starter, "_END_PATIENCE", 0.1)
    study = run(works, n_trials=1)
    assert "the fork server has too many open files" in study.trials[0].user_attrs[ERROR]
    monkeypatch.undo()
    assert states(run(works)) == ["COMPLETE"] * 2
    assert {each.pid for each in servers()} == before != set()


def test_a_server_whose_parent_has_died_while_it_imported_ends():
    parent = subprocess.Popen([sys.executable, "-c", "pass"])
    parent.wait()
    ours, its = socket.socketpair()
    with ours, its:  # a forked child of the parent may keep the connection
        arguments = json.dumps([its.fileno(), sys.path, [], "builtins:print", parent.pid])
        server = subprocess.Popen(
            [sys.executable, "-P", "-c", worker_starter.SERVER, arguments], pass_fds=[its.fileno()]
        )
        assert server.wait(60) == 0


def test_a_search_ends_though_its_server_is_stopped():
    """The server may also import for minutes."""

    def works(x: Float(0, 1)) -> float:
        return x

    run(works)
    stopped = servers()
    for server in stopped:
        os.kill(server.pid, signal.SIGSTOP)
    try:
        study = run(works, n_trials=4, concurrency=2, timeout=0.5)
    finally:
        for server in stopped:
            os.kill(server.pid, signal.SIGCONT)
    assert set(states(study)) == {"FAIL"}
    # It goes on: what it was asked for in vain ends at once.
    assert states(run(works)) == ["COMPLETE"] * 2
    assert servers() == stopped


def test_a_worker_that_waits_for_another_start_is_given_up(monkeypatch):
    starter = worker_starter.WorkerStarter([[]])
    monkeypatch.setattr(worker_starter, "_LOOK", 0.01)
    monkeypatch.setattr(worker_starter, "SERVER", "import time; time.sleep(600)  # a fork_server that imports")
    first, second = threading.Event(), threading.Event()
    second.set()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waits = pool.submit(starter.start, {}, first)
        wait_until(servers)
        with pytest.raises(worker_starter.StartGivenUpError):
            starter.start({}, second)
        first.set()
        with pytest.raises(worker_starter.StartGivenUpError):
            waits.result()
    starter.close()


@pytest.mark.parametrize("has_served", [False, True])
def test_an_exit_does_not_wait_for_a_server_that_is_stopped(has_served):
    program = (
        "import os, signal\n"
        "from optuna_flyte_dsl import Float, optimize\n"
        "from optuna_flyte_dsl.engines import worker_starter\n"
        "def works(x: Float(0, 1)) -> float: return x\n"
        "search = optimize(works, n_trials=1, timeout=1, executor='process', progress=False)\n"
        f"if {has_served}: search.run_sync()\n"
        "begin = worker_starter.WorkerStarter._running_server\n"
        "def begin_and_stop(starter):\n"
        "    control = begin(starter)\n"
        "    os.kill(starter._server.pid, signal.SIGSTOP)\n"
        "    return control\n"
        "worker_starter.WorkerStarter._running_server = begin_and_stop\n"
        "print(search.run_sync().trials[0].state.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60, text=True)
    assert done.stdout.split() == ["FAIL"]
    assert done.returncode == 0


def test_an_exit_does_not_wait_for_a_forked_child():
    program = (
        "import os, time\n"
        "from optuna_flyte_dsl import Float, optimize\n"
        "def works(x: Float(0, 1)) -> float: return x\n"
        "optimize(works, n_trials=1, executor='process', progress=False).run_sync()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os.close(1)\n"
        "    time.sleep(600)\n"
        "print(child, flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60, text=True)
    os.kill(int(done.stdout), signal.SIGKILL)
    assert done.returncode == 0


def test_what_must_not_be_imported_before_a_fork_is_not(tmp_path, monkeypatch):
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (packages / "jax.py").write_text("")
    (packages / "optaxlike.py").write_text("import jax")
    monkeypatch.syspath_prepend(packages)

    def uses(x: Float(0, 1)) -> float:
        return float("jax" in sys.modules or "optaxlike" in sys.modules)

    starter = worker_starter.WorkerStarter([["optuna"], ["optaxlike"]])
    monkeypatch.setattr("optuna_flyte_dsl.engines.process_runner.starter_of", lambda _: starter)
    assert [trial.value for trial in run(uses).trials] == [0.0, 0.0]
    starter.close()


def test_libraries_are_those_of_the_code_that_an_objective_reaches():
    assert process_runner._libraries_of(reaches) == ["numpy"]


def helper(x):
    return np.float64(x)


def reaches(x: Float(0, 1)) -> float:
    return next(helper(each) for each in [x])


def test_what_a_trial_prints_is_seen_though_its_worker_is_killed():
    program = (
        "from optuna_flyte_dsl import Float, optimize\n"
        "def prints(x: Float(0, 1)) -> float:\n"
        "    print('printed')\n"
        "    return x\n"
        "optimize(prints, n_trials=2, executor='process', progress=False).run_sync()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, text=True, timeout=60
    )
    assert done.stdout.split() == ["printed"] * 2


def test_a_process_that_an_async_objective_has_forked_does_not_answer():
    async def forks(x: Float(0, 1)) -> float:
        return x if os.fork() else -1.0

    study = run(forks, n_trials=6)
    assert states(study) == ["COMPLETE"] * 6
    assert min(trial.value for trial in study.trials) >= 0
