"""How worker processes start, and what they see of the process that has started them."""

import os
import random
import signal
import sys
import tempfile

import numpy as np
import psutil
import pytest

from optuna_flyte_dsl import Float
from optuna_flyte_dsl.engines import worker_starter
from optuna_flyte_dsl.study.attributes import ERROR
from tests.support import wait_until, worker_processes
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


def servers():
    return [each for each in psutil.Process().children() if "fork_server" in " ".join(each.cmdline())]


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


def test_a_script_is_not_run_again_in_a_worker():
    def main_of_worker(x: Float(0, 1)) -> float:
        main = sys.modules["__main__"]
        return float(getattr(main, "__file__", None) is None)

    assert [trial.value for trial in run(main_of_worker).trials] == [1.0, 1.0]


def test_workers_draw_different_random_numbers():
    def draws(x: Float(0, 1)) -> float:
        import time

        time.sleep(0.2)
        return np.random.rand() + random.random()

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

    def closes(x: Float(0, 1)) -> float:
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


@both_ways
def test_nothing_is_left_after_many_trials(fork, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def works(x: Float(0, 1)) -> float:
        return x

    run(works)
    before = len(os.listdir("/proc/self/fd")), len(psutil.Process().children(recursive=True))
    for _ in range(2):
        n_trials = 40 if fork else 4  # a new interpreter imports for a second
        assert states(run(works, n_trials=n_trials, concurrency=n_trials // 4)) == ["COMPLETE"] * n_trials
    assert (len(os.listdir("/proc/self/fd")), len(psutil.Process().children(recursive=True))) == before
    assert os.listdir(tmp_path) == []


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

    monkeypatch.setattr(worker_starter, "_SERVER", "raise SystemExit(3)")
    starter = worker_starter.WorkerStarter(("nothing",))
    monkeypatch.setattr("optuna_flyte_dsl.engines.process_runner.starter_of", lambda _: starter)
    study = run(works, n_trials=1)
    assert "The process that starts worker processes has died twice" in study.trials[0].user_attrs[ERROR]
