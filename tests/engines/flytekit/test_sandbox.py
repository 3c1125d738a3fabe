"""The directories of local calls: made when they are asked for, gone when the trial is over if they are empty."""

import concurrent.futures
import tempfile
import threading
from pathlib import Path

import flytekit as fl
import pytest
from flytekit.core.checkpointer import SyncCheckpoint
from flytekit.core.context_manager import FlyteContextManager

from optuna_flyte_dsl import Float, Minimize, optimize
from tests.support import wait_until

ASKED = []
DIRECTORY_OF = {}
go_on = threading.Event()


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """Put the temporary directories of this process into a folder that is empty at first."""
    ASKED.clear()
    go_on.clear()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    parameters = fl.current_context().builder()
    parameters.working_dir = str(tmp_path / "user_space")
    context = FlyteContextManager.current_context()
    state = context.execution_state.with_params(user_space_params=parameters.build())
    (tmp_path / "user_space").rmdir()  # `build` has made it
    with FlyteContextManager.with_context(context.with_execution_state(state)):
        yield tmp_path


def left_in(root):
    return [each for each in root.iterdir() if each.name != "flyte-cache"]  # flytekit's local cache, of all tests


@fl.task
def plain(x: Float(0, 1)) -> Minimize:
    return x


@fl.task
def with_list(x: Float(0, 1) * 2) -> Minimize:
    return x[0]


@fl.task
def asks(x: Float(0, 1)) -> Minimize:
    parameters = fl.current_context()
    directory = Path(parameters.working_directory)
    assert directory == Path(parameters.working_directory)
    ASKED.append(directory)
    assert isinstance(parameters.checkpoint, SyncCheckpoint)
    assert not parameters.checkpoint.prev_exists()
    parameters.checkpoint.write(b"0.5")
    assert [file.read_bytes() for file in directory.rglob("*") if file.is_file()] == [b"0.5"]
    again = parameters.builder().build()
    assert again.working_directory == str(directory)
    assert again.checkpoint is parameters.checkpoint
    return x


@fl.task
def asks_in_a_thread(x: Float(0, 1)) -> Minimize:
    parameters = fl.current_context()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        ASKED.append(Path(pool.submit(lambda: parameters.working_directory).result()))
        pool.submit(lambda: parameters.checkpoint.write(b"1")).result()
    return x


@fl.task
async def nested(y: float) -> float:
    DIRECTORY_OF[y] = Path(fl.current_context().working_directory)
    ASKED.append(DIRECTORY_OF[y])
    return y


@fl.eager
async def workflow(x: Float(0, 1)) -> Minimize:
    first = await nested(y=x)
    assert DIRECTORY_OF[x].is_dir()  # the directories of a trial stay until the trial is over
    return first + await nested(y=x)


@fl.task
def hangs(x: Float(0, 1)) -> Minimize:
    go_on.wait(30)
    ASKED.append(Path(fl.current_context().working_directory))
    return x


@pytest.mark.parametrize("objective", [plain, with_list], ids=["by values", "by flytekit"])
def test_a_task_that_asks_for_nothing_gets_no_directory(objective, root):
    optimize(objective, n_trials=8, concurrency=4).run_sync()
    assert left_in(root) == []


@pytest.mark.parametrize("objective", [asks, asks_in_a_thread, workflow], ids=["task", "thread", "eager"])
def test_an_empty_directory_is_removed_when_its_trial_is_over(objective, root):
    study = optimize(objective, n_trials=8, concurrency=4).run_sync()
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
    assert len(set(ASKED)) == (16 if objective is workflow else 8)
    assert {directory.parent for directory in ASKED} == {root}
    assert left_in(root) == []


@fl.task
def saves_a_model(x: Float(0, 1)) -> Minimize:
    directory = Path(fl.current_context().working_directory)
    (directory / "model").write_text(str(x))
    fl.current_context().checkpoint.write(b"1")
    ASKED.append(directory)
    return x


def test_what_a_task_has_written_is_kept(root):
    study = optimize(saves_a_model, n_trials=8, concurrency=4).run_sync()
    assert sorted((directory / "model").read_text() for directory in ASKED) == sorted(
        str(trial.params["x"]) for trial in study.trials
    )
    assert all([each.name for each in directory.iterdir()] == ["model"] for directory in ASKED)


def test_a_call_that_outlives_its_trial_keeps_its_directory_until_it_ends(root):
    study = optimize(hangs, n_trials=1, trial_timeout=0.05, concurrency=1, catch=()).run_sync()
    assert study.trials[0].state.name == "FAIL"
    go_on.set()
    wait_until(lambda: ASKED and not left_in(root))
    assert str(ASKED[0]).startswith(str(root / "user_space"))
