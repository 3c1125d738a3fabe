"""Trials on this machine: real Flyte entities, run by real threads."""

import asyncio
import dataclasses
import fractions
import gc
import os
import subprocess
import sys
import tempfile
import threading
import typing
from collections import Counter
from pathlib import Path
from typing import Optional

import flytekit as fl
import numpy as np
import optuna
import psutil
import pytest
from flytekit.core.context_manager import FlyteContextManager, flyte_context_Var
from flytekit.deck.renderer import PythonDependencyRenderer
from flytekit.testing import task_mock
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile

from optuna_flyte_dsl import (
    Category,
    Float,
    Integer,
    Maximize,
    Minimize,
    ObjectiveValueError,
    Optimizer,
    optimize,
    suggest,
)
from optuna_flyte_dsl._compat.flytekit import wrap_literal_cache
from optuna_flyte_dsl.engines._flytekit.literal_cache import LockedLiteralCache
from tests.support import in_new_process, own_threads, wait_until
from tests.support._compat import count_of_event_loops


class Meeting:
    """Lets each comer wait until a given number are there: only what is concurrent gets through."""

    def __init__(self, size):
        self.barrier = threading.Barrier(size)

    def attend(self):
        self.barrier.wait(timeout=30)

    async def attend_async(self):
        await asyncio.to_thread(self.attend)


meeting = Meeting(1)
calls = Counter()


@pytest.fixture(autouse=True)
def _fresh():
    calls.clear()


@fl.task
async def async_task(x: Float(0, 1)) -> float:
    await meeting.attend_async()
    return x


@fl.task
def sync_task(x: Float(0, 1)) -> float:
    meeting.attend()
    return x


@fl.workflow
def workflow(x: Float(0, 1)) -> float:
    return sync_task(x=x)


@fl.eager
async def eager(x: Float(0, 1)) -> float:
    return await async_task(x=x)


launch_plan = fl.LaunchPlan.get_or_create(workflow, "a_local_launch_plan")


@fl.dynamic
def dynamic(x: Float(0, 1)) -> float:
    return sync_task(x=x)


def function(x: Float(0, 1)):
    meeting.attend()
    return x


async def coroutine(x: Float(0, 1)):
    await meeting.attend_async()
    return x


def sync_callback(trial: optuna.Trial):
    return async_task(x=trial.suggest_float("x", 0, 1))


async def async_callback(trial: optuna.Trial):
    return await async_task(x=trial.suggest_float("x", 0, 1))


def sync_callback_of_a_sync_task(trial: optuna.Trial):
    return sync_task(x=trial.suggest_float("x", 0, 1))


KINDS = [
    async_task,
    sync_task,
    workflow,
    launch_plan,
    dynamic,
    function,
    coroutine,
    sync_callback,
    async_callback,
    sync_callback_of_a_sync_task,
]


def name_of(kind):
    return getattr(kind, "__name__", None) or kind.name


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_every_kind_of_objective_is_truly_concurrent(kind, monkeypatch):
    monkeypatch.setattr(f"{__name__}.meeting", Meeting(4))
    study = Optimizer(kind, concurrency=4, n_trials=8).run_sync()
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 8
    assert all(trial.value == trial.params["x"] for trial in study.trials)


@pytest.mark.parametrize("kind", [async_task, sync_task, sync_callback, eager], ids=name_of)
def test_it_is_so_in_an_eager_workflow_too(kind, monkeypatch):
    monkeypatch.setattr(f"{__name__}.meeting", Meeting(3))
    optimizer = Optimizer(kind, concurrency=3, n_trials=3)

    @fl.eager
    async def search(n: int) -> float:
        before = list(flyte_context_Var.get())
        study = await optimizer()
        assert list(flyte_context_Var.get()) == before
        return study.best_value + await async_task_alone(x=float(n))

    assert asyncio.run(search(n=1)) >= 1


@fl.task
async def async_task_alone(x: float) -> float:
    return x


def test_the_callers_flyte_context_is_unchanged():
    async def main():
        before = list(flyte_context_Var.get())
        await Optimizer(sync_task, concurrency=2, n_trials=4)()
        assert list(flyte_context_Var.get()) == before
        assert FlyteContextManager.current_context() is before[-1]

    asyncio.run(main())


@fl.task(cache=True, cache_version="1")
def cached(x: Integer(1, 3)) -> float:
    calls[x] += 1
    return float(x)


def test_flytes_cache_answers_a_repeated_point():
    study = Optimizer(cached, concurrency=1, n_trials=30).run_sync()
    assert len(study.trials) == 30
    assert set(calls.values()) == {1}


@fl.task(cache=True, cache_version="1")
def cached_concurrently(x: Integer(1, 1000), run: int) -> float:
    return float(x)


def test_the_first_cached_calls_do_not_race():
    study = Optimizer(cached_concurrently, concurrency=16, n_trials=64).run_sync(run=1)
    assert Counter(trial.state.name for trial in study.trials) == {"COMPLETE": 64}


CACHED_INSIDE = """
import flytekit as fl
from optuna_flyte_dsl import Integer
from optuna_flyte_dsl import Optimizer

@fl.task(cache=True, cache_version="1")
def cached(x: int) -> float:
    return float(x)

@fl.workflow
def workflow(x: Integer(1, 10**6)) -> float:
    return cached(x=x)

study = Optimizer(workflow, concurrency=16, n_trials=32).run_sync()
assert {trial.state.name for trial in study.trials} == {"COMPLETE"}, study.trials[0].user_attrs
"""


def test_the_first_cached_calls_inside_of_a_workflow_do_not_race(tmp_path):
    (tmp_path / "test_program.py").write_text(CACHED_INSIDE)
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    ran = subprocess.run(
        [sys.executable, "test_program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


def test_a_local_trial_writes_no_deck(monkeypatch):
    monkeypatch.setattr(PythonDependencyRenderer, "to_html", lambda self: pytest.fail("a Deck was made"))
    study = Optimizer(eager, 2, 3).run_sync()
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
    assert eager.enable_deck


def test_each_trial_has_a_context_stack_of_its_own():
    async def objective(trial: optuna.Trial):
        context = FlyteContextManager.current_context()
        with FlyteContextManager.with_context(context.with_new_compilation_state()) as mine:
            await both_in.attend_async()
            assert FlyteContextManager.current_context() is mine
        assert FlyteContextManager.current_context() is context
        return 1.0

    both_in = Meeting(2)
    study = Optimizer(objective, 2, 2).run_sync()
    assert [trial.user_attrs for trial in study.trials] == [{}, {}]


def test_an_async_task_runs_in_the_thread_of_its_trial_and_threads_are_used_again():
    names = []

    async def named(x: Float(0, 1)) -> float:
        names.append(threading.current_thread().name)
        return x

    task = fl.task(named)
    Optimizer(task, 2, 20).run_sync()
    Optimizer(task, 2, 20).run_sync()
    assert len(set(names)) <= 3
    assert all(name.startswith("optuna-flyte-") and " " not in name for name in names)


@dataclasses.dataclass
class Config:
    width: int
    name: str = "n"


@fl.task
def of_files(x: Float(0, 1), file: FlyteFile, folder: FlyteDirectory, config: Config, maybe: Optional[str]) -> float:
    assert Path(file).read_text() == "content"
    assert os.listdir(folder.download()) == ["inside"]
    assert config == Config(3)
    assert maybe is None
    return x


def test_files_folders_and_dataclasses_reach_the_task(tmp_path):
    (tmp_path / "file").write_text("content")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("")
    study = Optimizer(of_files, concurrency=3, n_trials=6).run_sync(
        file=FlyteFile(str(tmp_path / "file")),
        folder=FlyteDirectory(str(tmp_path / "folder")),
        config=Config(3),
        maybe=None,
    )
    assert Counter(trial.state.name for trial in study.trials) == {"COMPLETE": 6}


@fl.task
def double(x: float) -> float:
    return 2 * x


@fl.task
async def add(x: float, y: float) -> float:
    return x + y


async def several(trial: optuna.Trial, y: float):
    x = trial.suggest_float("x", 0, 1)
    left, right = await asyncio.gather(add(x=x, y=y), add(x=x, y=0.0))
    return double(x=left + right)


def test_a_callback_awaits_several_tasks():
    study = Optimizer(several, concurrency=4, n_trials=8).run_sync(y=3.0)
    assert all(trial.value == pytest.approx(4 * trial.params["x"] + 6) for trial in study.trials)


@optimize(concurrency=2, n_trials=4)
@fl.task
async def inner(x: Float(0, 1), base: float) -> float:
    return base + x


@optimize(concurrency=3, n_trials=6)
@fl.eager
async def outer(base: Float(1, 2)) -> float:
    study = await inner(base=base)
    assert len(study.trials) == 4
    return study.best_value


async def outer_callback(trial: optuna.Trial):
    return (await inner(base=trial.suggest_float("base", 1, 2))).best_value


@pytest.mark.parametrize("objective", [outer, Optimizer(outer_callback, 3, 6)], ids=["eager", "callback"])
def test_searches_nest(objective):
    study = objective.run_sync()
    assert len(study.trials) == 6
    assert all(trial.value >= trial.params["base"] for trial in study.trials)


@fl.task
def bundle(params: dict[str, float], label: str) -> float:
    return params["a"] + params["b"] + len(label)


def test_a_bundle_of_suggestions_reaches_a_task():
    study = Optimizer(bundle, concurrency=2, n_trials=5).run_sync(
        params={"a": suggest.float(0, 1), "b": 3.0}, label=suggest.category(["", "xx"])
    )
    assert all(trial.params.keys() == {"params.a", "label"} for trial in study.trials)
    assert all(t.value == pytest.approx(t.params["params.a"] + 3 + len(t.params["label"])) for t in study.trials)


@fl.task
def failing(x: Integer(0, 9)) -> Maximize:
    if x % 2:
        raise ValueError("odd")
    return float(x)


def test_a_failing_task_is_a_failed_trial(warned):
    study = Optimizer(failing, concurrency=4, n_trials=30, seed=1).run_sync()
    assert {trial.state.name for trial in study.trials} == {"COMPLETE", "FAIL"}
    assert all((trial.state.name == "FAIL") == bool(trial.params["x"] % 2) for trial in study.trials)
    assert all("odd" in message for message in warned())


@fl.task
def pruning(x: Float(0, 1)) -> float:
    if x >= 0:
        raise optuna.TrialPruned
    return x


def test_a_task_that_prunes_is_pruned():
    study = Optimizer(pruning, concurrency=2, n_trials=3).run_sync()
    assert {trial.state.name for trial in study.trials} == {"PRUNED"}


def test_a_reference_task_runs_where_it_is_patched():
    @fl.reference_task(project="p", domain="d", name="n", version="v")
    def reference(x: float) -> float: ...

    with task_mock(reference) as mock:
        mock.side_effect = lambda x: 2 * x
        study = Optimizer(reference, concurrency=2, n_trials=3).run_sync(x=suggest.float(0, 1))
    assert all(trial.value == 2 * trial.params["x"] for trial in study.trials)


def test_a_task_of_another_type_is_an_objective(tmp_path):
    from flytekit.extras.tasks.shell import OutputLocation, ShellTask

    task = ShellTask(
        name="a_shell_task",
        script="echo {inputs.x} > {outputs.o}",
        inputs=fl.kwtypes(x=float),
        output_locs=[OutputLocation(var="o", var_type=FlyteFile, location=f"{tmp_path}/{{inputs.x}}.txt")],
    )

    async def objective(trial: optuna.Trial):
        file = await asyncio.to_thread(task, x=trial.suggest_float("x", 0, 1))
        return float(Path(file).read_text())

    study = Optimizer(objective, concurrency=2, n_trials=3).run_sync()
    assert all(trial.value == pytest.approx(trial.params["x"]) for trial in study.trials)


def left_after_a_thousand_trials(folder):
    """Return what there is after a few trials, and after a thousand more.

    These are the threads, event loops, open files, children and temporary files of the process.
    """
    tempfile.tempdir = str(folder)
    sandbox = FlyteContextManager.current_context().file_access.local_sandbox_dir

    def run(optimized, n_trials):
        Optimizer(optimized, concurrency=8, n_trials=n_trials, sampler=optuna.samplers.RandomSampler).run_sync()

    seen = []
    for n_trials in (8, 500):
        run(async_task, n_trials)
        run(sync_callback, n_trials)
        gc.collect()
        n_files = sum(len(list(Path(each).rglob("*"))) for each in (folder, sandbox))
        n_processes = len(psutil.Process().children(recursive=True))
        n_open = len(os.listdir("/proc/self/fd"))
        seen.append((threading.active_count(), count_of_event_loops(), n_open, n_processes, n_files))
    return seen, own_threads()


@pytest.mark.newest
def test_nothing_stays_behind_after_a_thousand_trials(tmp_path):
    (before, after), threads = in_new_process(left_after_a_thousand_trials, tmp_path)
    assert before == after
    assert threads == set()


def test_a_trial_that_hangs_does_not_hold_up_the_end_of_its_search():
    release = threading.Event()

    async def main():
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hanging(trial):
            loop.call_soon_threadsafe(started.set)
            release.wait(30)
            return 1.0

        optimizer = Optimizer(hanging, concurrency=2, n_trials=2)
        search = asyncio.ensure_future(optimizer())
        await started.wait()
        search.cancel()
        with pytest.raises(asyncio.CancelledError):
            await search
        assert optimizer.study.trials
        assert all(trial.state.name == "FAIL" for trial in optimizer.study.trials)

    asyncio.run(main())
    assert own_threads()
    release.set()
    wait_until(lambda: not own_threads())


class Evicting(dict):
    """Keeps the last eight entries, as a cache does."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        while len(self) > 8:
            del self[next(iter(self))]


@pytest.fixture
def hurried_threads():
    """Let Python change threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_many_threads_share_flytekits_cache_of_literals(hurried_threads):
    Optimizer(sync_task, 2, 2).run_sync()
    wrap_literal_cache(lambda inner: pytest.fail("it must be wrapped already"), LockedLiteralCache)
    cache = LockedLiteralCache(Evicting())
    errors = []

    def use(start):
        for number in range(start, start + 3000):
            key = number % 16
            try:
                if key in cache:
                    assert cache[key] == key
                else:
                    cache[key] = key
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=use, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


EXITING = """
import asyncio, atexit, threading
from flytekit.utils.asyn import loop_manager
from optuna_flyte_dsl.engines._flytekit.event_loops import outlive_exit

over, begun = threading.Event(), threading.Event()

async def publish():
    begun.set()
    for _ in range(20):
        await asyncio.sleep(0.002)

def work():  # as flytekit's Controller does it
    while not over.is_set():
        loop_manager.run_sync(publish)

thread = threading.Thread(target=work, daemon=True, name="controller-thread")
atexit.register(lambda: (over.set(), thread.join()))
outlive_exit(thread)
thread.start()
begun.wait()
"""


@pytest.mark.newest
def test_a_thread_that_python_waits_for_at_exit_can_end():
    subprocess.run([sys.executable, "-c", EXITING], check=True, timeout=60)


def test_a_task_may_leave_something_in_its_loop():
    @optimize(concurrency=2, n_trials=4)
    @fl.task
    async def careless(x: Float(0, 1)) -> float:
        task = asyncio.create_task(asyncio.sleep(3600))
        await asyncio.sleep(0)
        assert not task.done()
        return x

    assert len(careless.run_sync().trials) == 4
    assert own_threads() == set()


def test_a_category_of_mixed_types_reaches_a_task():
    @optimize(concurrency=2, n_trials=12)
    @fl.task
    def mixed(x: Category([7, "a", None, 2.5, True])) -> float:
        return float(len(repr(x)))

    study = mixed.run_sync()
    assert all(trial.value == len(repr(trial.params["x"])) for trial in study.trials)


@optimize(n_trials=3, progress=False)
@fl.eager
async def gathering(x: Float(0, 1)) -> float:
    values = await asyncio.gather(*(three_meet(x=x) for _ in range(3)))
    return sum(values)


_three = threading.Barrier(3)


@fl.task
async def three_meet(x: float) -> float:
    await asyncio.to_thread(_three.wait, timeout=30)  # passes only if three are here at once
    return x


def test_what_an_eager_workflow_awaits_is_concurrent_as_on_a_cluster():
    study = gathering.run_sync()
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3


@optimize(n_trials=3, progress=False)
@fl.task
def returns_none(x: Float(0, 1)) -> float:
    return None


@optimize(n_trials=3, progress=False)
@fl.task
async def returns_three(x: Float(0, 1)) -> tuple[Minimize, Minimize]:
    return x, x, x


@optimize(n_trials=3, progress=False)
@fl.task
def returns_one(x: Float(0, 1)) -> tuple[Minimize, Minimize]:
    return x


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (returns_none, "`returns_none` must return a number, but it returned None, of type NoneType"),
        (returns_three, r"`returns_three` returned 3 values, \(.*\), but the study has 2 directions"),
        (returns_one, r"`returns_one` returned 1 value, 0\..*, but the study has 2 directions"),
    ],
)
def test_a_task_that_returns_what_no_study_can_take_ends_the_search(task, message):
    with pytest.raises(ObjectiveValueError, match=message):
        task.run_sync()
    assert [trial.state.name for trial in task.study.trials] == ["FAIL"]


@optimize(n_trials=20, progress=False)
@fl.task
def returns_a_list(x: Float(0, 1)) -> float:
    return [x]


def test_a_value_of_a_type_that_flyte_refuses_ends_the_search_at_the_first_trial():
    message = r"returned \[0\..*\], of type list, which Flyte does not accept .*Write `float\(...\)` around the value"
    with pytest.raises(ObjectiveValueError, match=message):
        returns_a_list.run_sync()
    assert [trial.state.name for trial in returns_a_list.study.trials] == ["FAIL"]


class Scores(typing.NamedTuple):
    accuracy: Maximize
    seconds: Minimize


NUMBERS = {
    "float64": np.float64(0.5),
    "float32": np.float32(0.5),
    "int64": np.int64(2),
    "int": 2,
    "bool": True,
    "array": np.array(0.5),
    "fraction": fractions.Fraction(1, 2),
}


@optimize(n_trials=1, progress=False)
@fl.task
def returns_a_number(kind: str, x: Float(0, 1)) -> float:
    return NUMBERS[kind]


@optimize(n_trials=1, progress=False)
@fl.task
async def returns_numbers(kind: str, x: Float(0, 1)) -> Scores:
    return Scores(NUMBERS[kind], NUMBERS[kind])


@optimize(n_trials=1, progress=False)
@fl.task
def returns_an_optional(kind: str, x: Float(0, 1)) -> typing.Optional[Maximize]:
    return NUMBERS[kind]


@optimize(n_trials=1, progress=False)
@fl.task
def returns_an_integer(x: Float(0, 1)) -> int:
    return np.int64(2)


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_other_packages_are_numbers(kind):
    assert returns_a_number.run_sync(kind=kind).best_value == float(NUMBERS[kind])
    assert returns_numbers.run_sync(kind=kind).trials[0].values == [float(NUMBERS[kind])] * 2
    assert returns_an_optional.run_sync(kind=kind).best_value == float(NUMBERS[kind])
    assert returns_an_integer.run_sync().best_value == 2.0


def test_searches_over_a_cached_task_do_not_open_ever_more_files():
    def open_files():
        links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
        return sum(os.readlink(link).endswith("cache.db") for link in links if os.path.exists(link))

    optimizer = Optimizer(remembered, 4, 40, progress=False)
    seen = []
    for _ in range(5):
        optimizer.run_sync(x=suggest.integer(0, 9))
        seen.append(open_files())
    assert seen[-1] < seen[0] + 4  # SQLite keeps some for its next connections; each search leaves none of its threads'


@fl.task(cache=True, cache_version="1")
def remembered(x: int) -> float:
    return float(x)


@fl.task
def returns_x(x: float) -> float:
    return x


@fl.task
def exits(x: float) -> float:
    if x >= 0:
        raise SystemExit(3)
    return x


@fl.task
def calls_a_task_in_a_loop_of_its_own(x: Float(0, 1)) -> float:
    async def main():
        return returns_x(x=x)

    return asyncio.run(main())


def function_calls_a_task(x: Float(0, 1)) -> float:
    return returns_x(x=x)


def function_calls_a_task_in_a_loop_of_its_own(x: Float(0, 1)) -> float:
    async def main():
        return returns_x(x=x)

    return asyncio.run(main())


@pytest.mark.parametrize(
    "objective",
    [calls_a_task_in_a_loop_of_its_own, function_calls_a_task, function_calls_a_task_in_a_loop_of_its_own],
    ids=lambda objective: getattr(objective, "name", getattr(objective, "__name__", "")),
)
def test_a_task_may_be_called_inside_of_an_event_loop(objective):
    study = Optimizer(objective, 2, 8, progress=False).run_sync()
    assert [trial.value for trial in study.trials] == [trial.params["x"] for trial in study.trials]
    assert own_threads() == set()


@fl.eager
async def eager_awaits_what_exits(x: Float(0, 1)) -> float:
    return await exits(x=x)


@fl.eager
async def eager_gathers_what_exits(x: Float(0, 1)) -> float:
    return sum(await asyncio.gather(exits(x=x), returns_x(x=x)))


@fl.dynamic
def dynamic_calls_what_exits(x: Float(0, 1)) -> float:
    return exits(x=x)


@fl.workflow
def workflow_of_what_exits(x: Float(0, 1)) -> float:
    return exits(x=x)


def function_calls_what_exits(x: Float(0, 1)) -> float:
    return exits(x=x)


@pytest.mark.parametrize(
    "objective",
    [
        exits,
        eager_awaits_what_exits,
        eager_gathers_what_exits,
        dynamic_calls_what_exits,
        workflow_of_what_exits,
        function_calls_what_exits,
    ],
    ids=lambda objective: getattr(objective, "name", getattr(objective, "__name__", "")).rpartition(".")[2],
)
def test_a_task_that_exits_ends_the_search_wherever_it_was_called(objective):
    given = {"x": Float(0, 1)} if objective is exits else {}
    study = optuna.create_study()
    with pytest.raises(SystemExit):
        Optimizer(objective, 2, 8, study, progress=False).run_sync(**given)
    assert {trial.state.name for trial in study.trials} == {"FAIL"}
