"""A real process that is interrupted: no trial is left running."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from tests.support import scripts, wait_until
from tests.support.marks import newest

PROGRAM = """
import asyncio, pathlib, sys, time
import flytekit as fl
import optuna
from optuna_flyte_dsl import Float, Optimizer, optimize

folder = pathlib.Path(sys.argv[1])

def study():
    return optuna.create_study(storage=f"sqlite:///{folder}/study.db", study_name="s", load_if_exists=True)

def note(number):
    (folder / f"started-{number}").touch()

async def in_the_loop(trial: optuna.Trial):
    if trial.number < 2:
        return 1.0
    note(trial.number)
    await asyncio.Event().wait()

def in_a_thread(trial: optuna.Trial):
    if trial.number < 2:
        return 1.0
    note(trial.number)
    while True:  # a loop without a pause would keep Python's lock from what ends the search, on a busy machine for long
        time.sleep(0.001)

search = Optimizer(in_a_thread if sys.argv[2].endswith("thread") else in_the_loop, 2, 10, study)

@fl.eager
async def eager() -> float:
    return (await search()).best_value

if sys.argv[2].startswith("eager"):
    asyncio.run(eager())
elif sys.argv[2].startswith("sync"):
    search.run_sync()
else:
    asyncio.run(search())
"""


@pytest.mark.parametrize("how", [newest("asyncio"), newest("sync-thread"), "eager", newest("eager-thread")])
@pytest.mark.parametrize("times", [1, newest(2)])
def test_an_interrupt_leaves_no_trial_running(tmp_path, how, times):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    output = tmp_path / "output"
    process = scripts.start([sys.executable, "program.py", str(tmp_path), how], tmp_path, environment, output)
    try:
        wait_until(lambda: len(list(tmp_path.glob("started-*"))) == 2 or process.poll() is not None, 60)
        for _ in range(times):  # the second one breaks off what the first has begun
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        process.wait(60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    errors = output.read_text()
    assert process.returncode != 0, errors
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/study.db")
    assert sorted(trial.state.name for trial in study.trials) == ["COMPLETE", "COMPLETE", "FAIL", "FAIL"], errors
    reasons = {trial.user_attrs["optuna_flyte_dsl:error"] for trial in study.trials if trial.state.name == "FAIL"}
    assert reasons <= {
        "The search was cancelled while this trial ran.",
        "The search was interrupted while this trial ran.",
        # flytekit's own handler of the signal exits, and Python may call it in a step of a trial
        "The search ended while this trial ran: SystemExit: 1",
        "SystemExit: 1",
    }


FORKS = """
import asyncio, os, pathlib, sys, threading, time
from optuna_flyte_dsl import Float, optimize

@optimize(n_trials=4, concurrency=2, storage=sys.argv[1], study_name="s", progress=False)
async def train(x: Float(0, 1)) -> float:
    started.set()
    while not over.is_set():
        await asyncio.sleep(0.02)
    return x

started, over = threading.Event(), threading.Event()
studies = []
search = threading.Thread(target=lambda: studies.append(train.run_sync()))
search.start()
started.wait()
child = os.fork()
if child == 0:
    sys.exit(0)
os.waitpid(child, 0)
over.set()
search.join()
print(sorted(trial.state.name for trial in studies[0].trials))
"""


@pytest.mark.newest
def test_a_forked_child_that_exits_leaves_its_parents_trials_alone(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(tmp_path / "study.journal")], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "['COMPLETE', 'COMPLETE', 'COMPLETE', 'COMPLETE']", done.stderr
