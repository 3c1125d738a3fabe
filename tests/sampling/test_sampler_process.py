"""The process that samples: what its sampler sees, and how it starts, fails and ends."""

import functools
import gc
import json
import os
import pickle
import signal
import subprocess
import sys

import optuna
import psutil
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from optuna_flyte_dsl._compat.optuna import storage_of, trial_id
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl.sampling import sampler_process as module
from optuna_flyte_dsl.sampling.sampler_process import (
    Memory,
    Row,
    SamplerProcess,
    SamplerProcessError,
    SamplingRequest,
    sample,
    space_of_indices,
)
from tests.support import in_new_process, wait_until

SPACE = {"x": FloatDistribution(0.0, 10.0), "n": IntDistribution(1, 4), "c": CategoricalDistribution((0, 1))}
MAXIMIZE, MINIMIZE = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE


class Noting(RandomSampler):
    """Notes the trials that it sees."""

    seen: list

    def sample_relative(self, study, trial, search_space):
        trials = [each for each in study.get_trials() if each.number != trial.number]
        Noting.seen = (
            trials,
            study.directions,
            [storage_of(study).get_trial_system_attrs(trial_id(each)) for each in trials],
        )
        return {}


class Counting(RandomSampler):
    """Its points are the numbers of trials that it sees."""

    def sample_independent(self, study, trial, param_name, param_distribution):
        return len(study.get_trials(deepcopy=False)) - 1  # without the trial itself


class Misbehaving(RandomSampler):
    """Runs some code where it should sample."""

    def __init__(self, code):
        super().__init__(seed=1)
        self.code = code

    def sample_independent(self, *arguments):
        exec(self.code)
        return super().sample_independent(*arguments)


def request(make=RandomSampler, rows=(), *, number=0, earlier=(), space=SPACE, search=None):
    return SamplingRequest(number, make, search, [MINIMIZE], space, list(rows), list(earlier))


def test_the_sampler_sees_the_trials():
    rows = [
        Row(TrialState.COMPLETE, [1.0, 2.0], (0.5, 3.0, 1.0), {"constraints:a": 1.0}),
        Row(TrialState.RUNNING, None, (1.5, 4.0, 0.0), {}),
    ]
    asked = request(Noting, rows, earlier=[7, 8])._replace(directions=[MINIMIZE, MAXIMIZE])
    memory = Memory()
    memory.note(request(number=8), (2.5, 1.0, 1.0))
    x, n, c = sample(asked, memory)
    assert 0 <= x <= 10
    assert n in (1, 2, 3, 4)
    assert c in (0, 1)
    trials, directions, attributes = Noting.seen
    assert attributes[0] == {"constraints:a": 1.0}  # Optuna 4 asks the storage for them
    assert directions == [MINIMIZE, MAXIMIZE]
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.RUNNING, TrialState.RUNNING]
    assert [trial.params for trial in trials] == [
        {"x": 0.5, "n": 3, "c": 1},
        {"x": 1.5, "n": 4, "c": 0},
        {"x": 2.5, "n": 1, "c": 1},
    ]
    assert trials[0].values == [1.0, 2.0]
    assert trials[0].distributions == SPACE


def test_only_the_latest_points_and_samplers_are_kept():
    memory = Memory()
    for number in range(0, 4000, 2):
        memory.note(request(number=number), (float(number),))
    assert list(memory.points) == list(range(2000, 4000, 2))
    first, second = (memory.sampler(request(search=number)) for number in (1, 2))
    assert memory.sampler(request(search=1)) is first
    assert memory.sampler(request()) is not memory.sampler(request())
    for number in range(3, 10):
        memory.sampler(request(search=number))
    assert memory.sampler(request(search=1)) is first
    assert memory.sampler(request(search=2)) is not second


def test_choices_are_replaced_by_their_indices():
    with pytest.warns(UserWarning, match="choices"):
        space = {**SPACE, "c": CategoricalDistribution((None, lambda: None, "a"))}  # it cannot be pickled
    sent = space_of_indices(space)
    assert sent == {**SPACE, "c": CategoricalDistribution((0, 1, 2))}
    pickle.dumps(request(space=sent))


@pytest.fixture
def process():
    process = SamplerProcess(is_background=True, imports=())
    yield process
    process.close()


def test_the_process_keeps_its_memory_unless_the_user_says_otherwise(process, monkeypatch):
    """Glibc reads these variables when a process starts: https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html"""
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "12345")
    code = 'import os; assert (os.environ["MALLOC_MMAP_MAX_"], os.environ["MALLOC_TRIM_THRESHOLD_"]) == ("0", "12345")'
    asked = request(functools.partial(Misbehaving, code))
    assert len(process.submit(asked).result(30).point) == len(SPACE)


def pid_of(process):
    return process._process.pid


@pytest.mark.newest
def test_requests_are_answered_in_their_order(process):
    assert not process.is_busy
    space = {"x": SPACE["x"]}
    requests = [request(Counting, number=number, earlier=range(number), space=space) for number in range(1, 6)]
    futures = [process.submit(each) for each in requests]
    assert process.is_busy
    assert [future.result(60).point for future in futures] == [(0,), (1,), (2,), (3,), (4,)]
    assert not process.is_busy
    assert process.is_ready
    assert 0 < futures[0].result().seconds < 60
    assert os.getpriority(os.PRIO_PROCESS, pid_of(process)) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)


@pytest.mark.newest
def test_errors_and_output_of_a_sampler_do_no_harm(process):
    fails = functools.partial(Misbehaving, "raise ZeroDivisionError('by design')")
    prints = functools.partial(Misbehaving, "print('x' * 10**6, flush=True); import os; os.write(1, b'y')")
    with pytest.raises(SamplerProcessError, match=r"^ZeroDivisionError\('by design'\)$"):
        process.submit(request(fails)).result(60)
    assert process.submit(request(prints)).result(60)
    assert process.submit(request()).result(60)


@pytest.mark.newest
def test_a_request_that_cannot_be_sent_is_an_error(process):
    with pytest.raises(Exception, match="lambda"):
        process.submit(request(lambda: None)).result(60)
    assert process.submit(request()).result(60)


@pytest.mark.newest
def test_a_process_that_was_killed_is_replaced(process):
    process.submit(request()).result(60)
    first = pid_of(process)
    os.kill(first, signal.SIGKILL)
    assert process.submit(request()).result(60)
    assert pid_of(process) != first


@pytest.mark.newest
def test_a_process_that_dies_again_and_again_is_an_error(process):
    dies = functools.partial(Misbehaving, "import os; os.write(2, b'by design\\n\\n'); os._exit(3)")
    with pytest.raises(SamplerProcessError, match=r"^its process has ended \(exit code 3\): by design$"):
        process.submit(request(dies)).result(60)
    assert process.submit(request()).result(60)


@pytest.mark.newest
def test_a_process_that_does_not_start_is_an_error(process, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(SamplerProcessError, match=r"^its process does not start: FileNotFoundError"):
        process.submit(request()).result(60)


@pytest.mark.newest
def test_a_sampler_that_reads_the_input_reads_no_request(process):
    reads = functools.partial(Misbehaving, "import sys; assert sys.stdin.read() == ''")
    first, second = process.submit(request(reads)), process.submit(request())
    assert first.result(60)
    assert second.result(60)


@pytest.mark.newest
def test_a_failed_import_is_an_error():
    process = SamplerProcess(is_background=False, imports=("no_such_module",))
    with pytest.raises(SamplerProcessError, match="No module named 'no_such_module'"):
        process.submit(request()).result(60)
    process.close()


@pytest.mark.newest
def test_without_requests_it_ends_and_it_starts_again(process, monkeypatch):
    begun = process.submit(request())
    wait_until(lambda: process._process is not None)
    pid = process._process.pid
    begun.result(60)
    monkeypatch.setattr(pauses, "sampler_idle", 0.01)
    process.submit(request()).result(60)
    wait_until(lambda: not process._has_thread)
    assert not process.is_ready
    assert not psutil.pid_exists(pid)
    assert process.submit(request()).result(60)


@pytest.mark.newest
def test_a_request_that_was_cancelled_is_left_out(process):
    first = process.submit(request(functools.partial(Misbehaving, "import time; time.sleep(0.5)")))
    second, third = (
        process.submit(request(number=5)),
        process.submit(request(Counting, earlier=[5], space={"x": SPACE["x"]})),
    )
    assert second.cancel()
    assert first.result(60)
    assert third.result(60).point == (0,)
    assert not process.is_busy


@pytest.mark.newest
def test_the_close_of_a_process_ends_what_is_waited_for(process):
    process.submit(request()).result(60)
    begun = process.submit(request(functools.partial(Misbehaving, "import time; time.sleep(600)")))
    process.close()
    with pytest.raises(SamplerProcessError, match="its process was ended"):
        begun.result(60)
    with pytest.raises(SamplerProcessError, match="its process was ended"):
        process.submit(request()).result(60)


def open_after_searches():
    """Return what this process has open after some samplers' processes have ended."""
    seen = []
    for _ in range(3):
        process = SamplerProcess(is_background=True, imports=())
        process.submit(request()).result(60)
        process.close()
        del process
        gc.collect()
        wait_until(lambda: not psutil.Process().children())
        seen.append(len(os.listdir("/proc/self/fd")))
    return seen


@pytest.mark.newest
def test_nothing_is_left_of_a_process():
    assert len(set(in_new_process(open_after_searches))) == 1


PARENT = """
import json, os, sys, time
from optuna_flyte_dsl.sampling import sampler_process as module
from tests.sampling.test_sampler_process import request
module._IMPORTS = ()
process = module.sampler_process(is_background=True)
process.submit(request()).result(60)
if os.fork() == 0:  # it has a copy of the pipes, and outlives its parent
    has_another = module.sampler_process(is_background=True) is not process
    os.write(1, json.dumps([process._process.pid, os.getpid(), has_another]).encode() + b"\\n")
    time.sleep(600)
os.write(1, b"null\\n")  # an interrupt that comes before the fork has returned may be lost
while sys.argv[1] == "waits":
    time.sleep(0.01)  # one long sleep would not see an interrupt that comes just before it
"""


@pytest.mark.newest
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, None], ids=["killed", "interrupted", "at its end"])
def test_it_ends_with_the_process_that_has_started_it(end):
    command = [sys.executable, "-c", PARENT, "ends" if end is None else "waits"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        pid, forked, has_another = next(filter(None, [json.loads(parent.stdout.readline()) for _ in range(2)]))
        try:
            assert has_another
            if end is not None:
                parent.send_signal(end)
            parent.wait(60)
            wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        finally:
            os.kill(forked, signal.SIGKILL)


def test_samplers_share_a_process(monkeypatch):
    monkeypatch.setattr(module, "_processes", {})
    first, other, again = (module.sampler_process(is_background=each) for each in (True, False, True))
    assert first is again is not other
    first.close()
    assert module.sampler_process(is_background=True) is not first
