"""An async function calls what blocks: its task waits, and the event loop does not."""

import asyncio
import contextvars
import sys
import threading

import flytekit as fl
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from optuna_flyte_dsl import Float, Optimizer, optimize
from optuna_flyte_dsl._offload import OffloadingCoroutine, offload
from optuna_flyte_dsl._threads import Threads
from optuna_flyte_dsl.study.file_locks import FileLock

variable = contextvars.ContextVar("variable", default=0)


def run(coroutine):
    async def main():
        threads = Threads()
        try:
            return await OffloadingCoroutine(coroutine, threads)
        finally:
            await threads.close()

    return asyncio.run(main())


def fails(number):
    raise ArithmeticError(number)


async def program(steps, call):
    """Do what a list of steps says, and return what was seen."""
    seen = []
    for number, (kind, awaits_first) in enumerate(steps):
        if awaits_first:
            await asyncio.sleep(0)
        try:
            if kind == "call":
                seen.append(call(lambda number=number: (number, variable.get())))
            elif kind == "set":
                variable.set(number)
            elif kind == "fail":
                call(lambda number=number: fails(number))
            elif kind == "raise":
                fails(number)
            elif kind == "time":
                async with asyncio.timeout(0):
                    await asyncio.sleep(3600)
        except (ArithmeticError, TimeoutError) as error:
            seen.append(repr(error))
    if steps and steps[-1][0] == "raise":
        fails("at last")
    return seen, variable.get()


@given(st.lists(st.tuples(st.sampled_from(["call", "set", "fail", "raise", "time"]), st.booleans()), max_size=8))
def test_it_does_what_it_does_without(steps):
    def outcome(call):
        try:
            return run(program(steps, call)) if call is offload else asyncio.run(program(steps, call))
        except ArithmeticError as error:
            return repr(error)

    assert outcome(offload) == outcome(lambda function: function())


def test_the_loop_goes_on_while_a_call_blocks():
    async def main():
        threads, release = Threads(), threading.Event()

        async def waits():
            return offload(lambda: (release.wait(30), threading.current_thread().name))

        async def releases():
            release.set()

        (released, name), _ = await asyncio.gather(OffloadingCoroutine(waits(), threads), releases())
        await threads.close()
        return released, name

    released, name = asyncio.run(main())
    assert released
    assert name.startswith("optuna-flyte")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_an_eager_task_calls_for_itself():
    """Its first step runs within that of the task that makes it, which must not be left there."""

    async def child():
        name = offload(lambda: threading.current_thread().name)
        await asyncio.sleep(0)
        return name

    async def parent():
        mine = offload(lambda: threading.current_thread().name)
        return mine, await asyncio.create_task(child())

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        threads = Threads()
        names = await OffloadingCoroutine(parent(), threads)
        await threads.close()
        return names

    mine, childs = asyncio.run(main())
    assert mine.startswith("optuna-flyte")
    assert childs == threading.current_thread().name


def test_a_call_outside_of_it_is_a_plain_call():
    assert offload(threading.current_thread) is threading.current_thread()

    async def main():
        return offload(threading.current_thread)

    assert asyncio.run(main()) is threading.current_thread()


@pytest.mark.parametrize("swallows", [False, True])
def test_what_waits_for_a_call_can_be_cancelled(swallows):
    async def main():
        threads, begun, release = Threads(), asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def blocks():
            loop.call_soon_threadsafe(begun.set)
            release.wait(30)

        async def waits():
            try:
                offload(blocks)
            except asyncio.CancelledError:
                if not swallows:
                    raise
            return offload(lambda: "it goes on")

        async def awaits():
            return await OffloadingCoroutine(waits(), threads)

        task = asyncio.ensure_future(awaits())
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        release.set()
        await threads.close()
        return task

    task = asyncio.run(main())
    assert task.cancelled() is not swallows
    if swallows:
        assert task.result() == "it goes on"


class Slow(JournalFileBackend):
    """Answers to a report only when the event loop has gone round meanwhile; or is gone for a while, at first."""

    loop = None
    gone = 0

    def append_logs(self, logs):
        if any("intermediate_value" in log for log in logs):
            if Slow.gone:
                Slow.gone -= 1
                raise OSError(28, "No space left on device")
            if Slow.loop is not None:
                turned = threading.Event()
                Slow.loop.call_soon_threadsafe(turned.set)
                assert turned.wait(30), "the loop stands still"
        super().append_logs(logs)


@pytest.fixture
def slow(tmp_path):
    path = tmp_path / "study.journal"
    yield JournalStorage(Slow(str(path), lock_obj=FileLock(path)))
    Slow.gone, Slow.loop = 0, None


async def reports(trial: optuna.Trial, x: Float(0, 1)) -> float:
    for step in range(3):
        trial.report(x + step, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    trial.set_user_attr("note", step)
    await asyncio.sleep(0)
    return x


def returns_a_coroutine(trial):
    return reports(trial, trial.suggest_float("x", 0, 1))


class Reports:
    async def __call__(self, trial):
        return await reports(trial, trial.suggest_float("x", 0, 1))


@pytest.mark.parametrize("objective", [reports, returns_a_coroutine, Reports()])
@pytest.mark.parametrize("gone", [0, 3])
def test_an_async_function_reports_to_a_storage_that_blocks(slow, objective, gone, monkeypatch):
    Slow.gone = gone

    async def main():
        Slow.loop = asyncio.get_running_loop()
        pruner = optuna.pruners.ThresholdPruner(upper=2.7, n_warmup_steps=1)
        return await Optimizer(objective, 3, 8, storage=slow, study_name="s", pruner=pruner, seed=1, progress=False)()

    study = asyncio.run(main())
    assert {trial.state.name for trial in study.trials} == {"COMPLETE", "PRUNED"}
    for trial in study.trials:
        x = trial.params["x"]
        assert trial.intermediate_values == {0: x, 1: x + 1, 2: x + 2}
        assert trial.state.name == ("PRUNED" if x + 2 > 2.7 else "COMPLETE")
        assert trial.user_attrs.get("note") == (None if trial.state.name == "PRUNED" else 2)


class PrunesOutsideOfTheLoop(optuna.pruners.BasePruner):
    """Prunes in a thread where no event loop runs. A pruner that compares many trials holds up its thread."""

    def prune(self, study, trial):
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return trial.number % 2 == 1


def test_an_async_function_asks_its_pruner_in_a_thread(slow):
    search = Optimizer(reports, 2, 4, storage=slow, pruner=PrunesOutsideOfTheLoop(), progress=False)
    study = search.run_sync()
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"] * 2
    assert type(study.pruner) is PrunesOutsideOfTheLoop


@optimize(n_trials=4, concurrency=2, progress=False)
@fl.task
async def task_that_reports(trial: optuna.Trial, x: Float(0, 1)) -> float:
    trial.report(x, 0)
    return x


def test_an_async_task_waits_out_an_outage_in_its_own_loop(slow):
    Slow.gone = 2
    study = Optimizer(task_that_reports.task, 2, 4, storage=slow, study_name="s", progress=False).run_sync(
        x=Float(0, 1)
    )
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    assert all(trial.intermediate_values == {0: trial.value} for trial in study.trials)
