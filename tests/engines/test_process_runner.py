"""Worker processes from outside: what is sent to them, what they raise, and what becomes of those that die."""

import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from optuna_flyte_dsl import FixedArgumentError, Float, optimize
from optuna_flyte_dsl.study.attributes import ERROR
from tests.support import wait_until
from tests.support.marks import newest
from tests.support.small_searches import search, states


def reports_its_process(x: Float(0, 1)) -> float:
    return float(os.getpid())


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.newest
def test_the_death_of_an_idle_worker_is_no_trials_failure():
    killed = []

    def kill(study, trial):
        if trial.number == 0:
            killed.append(int(trial.value))
            os.kill(killed[0], signal.SIGKILL)
            wait_until(lambda: is_gone(killed[0]))

    search = optimize(reports_its_process, executor="process", n_trials=3, callbacks=[kill], progress=False)
    study = search.run_sync()
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert len({trial.value for trial in study.trials}) == 2


def leaves_a_process_that_holds_its_connection(x: Float(0, 1)) -> float:
    if os.fork() == 0:
        signal.pause()
    return float(os.getpid())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no fork server")
@pytest.mark.parametrize("objective", [reports_its_process, leaves_a_process_that_holds_its_connection])
def test_a_worker_that_dies_before_it_has_read_a_request_is_no_trials_failure(objective):
    def stop_and_kill(study, trial):
        if trial.number == 0:
            worker = int(trial.value)
            os.kill(worker, signal.SIGSTOP)  # it reads no request any more
            threading.Timer(0.5, os.kill, (worker, signal.SIGKILL)).start()

    study = optimize(objective, executor="process", n_trials=3, callbacks=[stop_and_kill], progress=False).run_sync()
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert len({trial.value for trial in study.trials}) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no fork server")
def test_a_trials_timeout_holds_if_its_worker_never_reads():
    def stop(study, trial):
        if trial.number == 0:
            os.kill(int(trial.value), signal.SIGSTOP)

    options = {"callbacks": [stop], "trial_timeout": 1, "progress": False}
    study = optimize(reports_its_process, executor="process", n_trials=3, **options).run_sync()
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]


def inherited(x: Float(0, 1)) -> float:
    mask = os.umask(0)
    os.umask(mask)
    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    return float(f"{mask}.{soft if soft >= 0 else 9}")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no fork server")
def test_a_worker_has_the_umask_the_limits_and_the_cores_of_its_search():
    run = optimize(inherited, executor="process", n_trials=1, progress=False).run_sync
    cores, (soft, hard), mask = os.sched_getaffinity(0), resource.getrlimit(resource.RLIMIT_CORE), os.umask(0o022)
    try:
        assert int(run().best_value) == 0o022  # the fork server runs from now on
        os.umask(0o077)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
        os.sched_setaffinity(0, {min(cores)})
        assert run().best_value == float(f"{0o077}.0")
        search = optimize(n_cores, executor="process", n_trials=1, progress=False)
        assert search.run_sync().best_value == 1
    finally:
        os.umask(mask)
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
        os.sched_setaffinity(0, cores)


def n_cores(x: Float(0, 1)) -> float:
    return float(len(os.sched_getaffinity(0)))


def takes_anything(x: Float(0, 1), thing: object) -> float:
    return x


@pytest.mark.newest
def test_an_argument_that_no_worker_can_get_ends_the_search_at_its_first_trial():
    search = optimize(takes_anything, executor="process", n_trials=3, progress=False)
    with pytest.raises(FixedArgumentError, match="`takes_anything` cannot get its argument `thing` in another process"):
        search.run_sync(thing=threading.Lock())
    assert [trial.state.name for trial in search.study.trials] == ["FAIL"]


@pytest.mark.newest
def test_a_process_that_is_exchanged_for_its_size_runs_on():
    def grows(x: Float(0, 1)) -> float:
        import builtins

        if os.environ.setdefault("GROWN", str(os.getpid())) == str(os.getpid()) and not hasattr(builtins, "kept"):
            builtins.kept = bytearray(400 * 2**20)
        return x

    study = search(grows, executor="process", n_trials=5).run_sync()
    assert states(study) == ["COMPLETE"] * 5


class Particular(ValueError):
    def __init__(self, a, b):
        super().__init__("particular")


def raises_particular(x: Float(0, 1)) -> float:
    raise Particular(1, 2)


def crashes(x: Float(0, 1)) -> float:
    os._exit(3)
    return x


@pytest.mark.parametrize("executor", ["thread", newest("process")])
def test_what_is_caught_is_the_same_in_a_process(executor):
    study = search(raises_particular, executor=executor, n_trials=2, catch=ValueError).run_sync()
    assert states(study) == ["FAIL"] * 2
    assert "Particular: particular" in study.trials[0].user_attrs[ERROR]
    with pytest.raises(Exception, match="particular"):
        search(raises_particular, executor=executor, n_trials=2, catch=KeyError).run_sync()


@pytest.mark.newest
def test_a_crash_is_a_failed_trial_whatever_is_caught():
    assert states(search(crashes, executor="process", n_trials=2, catch=KeyError).run_sync()) == ["FAIL"] * 2


def test_what_cannot_be_sent_to_a_process_is_named():
    lock = threading.Lock()

    def holds(x: Float(0, 1)) -> float:
        with lock:
            return x

    with pytest.raises(Exception, match=r"`holds` cannot be sent to another process.*lock"):
        search(holds, executor="process").run_sync()


@pytest.mark.newest
def test_each_process_has_a_device_of_its_own_and_all_end_with_the_search():
    def device(x: Float(0, 1)) -> float:
        return float(os.environ["CUDA_VISIBLE_DEVICES"]) + os.getpid() / 1e9

    study = search(device, executor="process", gpus=[3, 5], concurrency=2, n_trials=6).run_sync()
    values = {trial.value for trial in study.trials}
    assert {int(value) for value in values} <= {3, 5}
    assert len(values) <= 2, "workers are used again"


@pytest.mark.newest
def test_a_result_that_cannot_be_sent_is_a_failed_trial():
    def odd(x: Float(0, 1)) -> float:
        class Odd(Exception):
            def __reduce__(self):
                raise TypeError("not me")

        raise Odd("of its own kind")

    study = search(odd, executor="process", n_trials=1).run_sync()
    assert "Odd: of its own kind" in study.trials[0].user_attrs[ERROR]


@pytest.mark.newest
def test_what_a_killed_worker_has_started_ends_with_the_search(tmp_path):
    """As the kernel kills a process when memory runs out."""

    @optimize(n_trials=1, executor="process", progress=False)
    def starts(x: Float(0, 1), file: str) -> float:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path(file).write_text(str(child.pid))
        os.kill(os.getpid(), signal.SIGKILL)
        return x

    study = starts.run_sync(file=str(tmp_path / "pid"))
    assert states(study) == ["FAIL"]
    child = int((tmp_path / "pid").read_text())
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
