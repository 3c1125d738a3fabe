"""What the attempts of a pod leave to each other."""

import asyncio
import collections
import dataclasses
import itertools
import math
import threading

import optuna
import pytest
import quick
from flytekit.core.checkpointer import SyncCheckpoint

from optuna_flyte_dsl import Optimizer, optimize, suggest
from optuna_flyte_dsl.engines._flytekit.cluster import cluster_site as site_module
from optuna_flyte_dsl.study.attributes import EXECUTIONS, LOST, OWNER
from optuna_flyte_dsl.study.storages import open_storage
from tests.support.cluster_searches import echo, ended_there, executions, outputs, there, with_options
from tests.support.eager_pod import Pod, kill_all, killed_after
from tests.support.flyteadmin import Succeeded
from tests.support.sessions import dead_record
from tests.support.small_searches import states


def test_two_searches_at_once_and_an_optimizer_called_twice_go_on_after_a_kill(cluster, tmp_path):
    cluster.instant = echo(seconds=0.2)
    optimizers = []

    async def workflow():
        optimizer = Optimizer(quick.both, 2, 3, progress=False, seed=1)
        optimizers.append(optimizer)
        a, b = await asyncio.gather(quick.train(base=1.0), quick.train(base=2.0))
        await optimizer()
        await optimizer()
        return a, b, optimizer.study

    for attempt, launches in enumerate((3, 9, 14, 20)):
        Pod(cluster, tmp_path, attempt).run(lambda now=launches: killed_after(cluster, now, workflow()))
    a, b, study = Pod(cluster, tmp_path, 4).run(workflow)
    assert states(a) == states(b) == states(study) == ["COMPLETE"] * 6
    names = collections.Counter()
    for each in (a, b, study):
        names.update(entry["name"] for trial in each.trials for entry in trial.user_attrs[EXECUTIONS])
    assert len(cluster.executions) == 6 + 6 + 2 * 6 == len(names)
    assert set(names.values()) == {1}
    assert {each.inputs.literals["base"].scalar.primitive.float_value for each in executions(cluster)} == {
        1.0,
        2.0,
        3.0,
    }


@pytest.mark.parametrize("names", [("eager", "eager", "eager"), ("first", "second", "third")])
def test_a_search_in_a_users_storage_goes_on_in_any_pod(cluster, tmp_path, names):
    cluster.instant = echo(seconds=0.2)

    def search():
        path = tmp_path / "study.journal"
        return Optimizer(quick.train.task, 2, 6, storage=path, resume=True, progress=False)()

    for attempt, launches in enumerate((2, 4)):
        pod = Pod(cluster, tmp_path, attempt, names[attempt])
        pod.run(lambda now=launches: killed_after(cluster, now, search()))
    study = Pod(cluster, tmp_path, 2, names[2]).run(search)
    assert states(study) == ["COMPLETE"] * 6, "each was adopted"
    assert len(cluster.executions) == 6, "none was paid for twice"
    assert not cluster.running()


def test_a_trial_without_an_execution_is_closed_and_tried_again(cluster, tmp_path):
    path = tmp_path / "study.journal"
    record = dead_record()
    left = optuna.create_study(storage=open_storage(path), study_name="train")
    left.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params={"x": 0.375},
            distributions={"x": optuna.distributions.FloatDistribution(0, 1)},
            system_attrs={f"{OWNER}other": record},
        )
    )
    study = there(Optimizer(quick.train.task, 2, 3, storage=path, resume=True, progress=False), cluster).run_sync()
    assert states(study) == ["FAIL"] + ["COMPLETE"] * 3
    assert study.trials[1].params == {"x": 0.375}


def test_a_function_that_had_launched_nothing_is_tried_again_as_a_new_trial(cluster, tmp_path):
    started = threading.Event()

    async def slow_to_start(trial: optuna.Trial):
        x = trial.suggest_float("x", 0, 1)
        if not started.is_set():
            started.set()
            await asyncio.Event().wait()
        return x

    async def killed(search):
        task = asyncio.ensure_future(search)
        while not started.is_set():
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        site = site_module.current_site()
        await site.store.commit()
        for each in list(site.sigterm.searches):
            each.end(leave=True)
        with pytest.raises(asyncio.CancelledError):
            await task

    Pod(cluster, tmp_path, 0).run(lambda: killed(Optimizer(slow_to_start, 1, 3, progress=False)()))
    optimizer = Optimizer(slow_to_start, 1, 3, progress=False)
    Pod(cluster, tmp_path, 1).run(optimizer)
    assert states(optimizer.study) == ["FAIL"] + ["COMPLETE"] * 3
    assert optimizer.study.trials[1].params == optimizer.study.trials[0].params


def test_trials_are_found_in_flyte_where_the_checkpoint_is_missing(cluster, tmp_path, warned):
    cluster.instant = echo(seconds=0.3)
    objective = with_options(quick.train)  # with a sampler that does not repeat
    objective._session.options = dataclasses.replace(objective._session.options, seed=None)
    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 4, objective()))
    before = {name: each.inputs for name, each in cluster.executions.items()}
    study = Pod(cluster, tmp_path, 2).run(objective)  # attempt 1 has left nothing
    assert states(study) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 6
    assert before.items() <= {name: each.inputs for name, each in cluster.executions.items()}.items()
    assert f"The checkpoint lacks trials: {len(before)} were found in Flyte." in warned()


def test_overlapping_calls_of_an_optimizer_do_not_touch_each_others_trials(cluster, tmp_path):
    cluster.instant = echo(seconds=0.1)
    for objective in (quick.train.task, quick.both):
        optimizer = Optimizer(objective, 2, 4, progress=False)
        given = {"x": suggest.float(0, 1)} if objective is quick.train.task else {}

        async def workflow(optimizer=optimizer, given=given):
            first = asyncio.ensure_future(optimizer(**given))
            await asyncio.sleep(0.15)
            await asyncio.gather(first, optimizer(**given))

        Pod(cluster, tmp_path / str(objective), 0).run(workflow)
        assert states(optimizer.study) == ["COMPLETE"] * 8


def test_searches_with_other_fixed_arguments_keep_their_studies_in_any_order(cluster, tmp_path):
    cluster.instant = echo(seconds=0.1)

    async def both(first, second):
        return await asyncio.gather(quick.train(base=first), quick.train(base=second))

    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 6, both(1.0, 2.0)))
    studies = Pod(cluster, tmp_path, 1).run(lambda: both(2.0, 1.0))
    for study, base in zip(studies, (2.0, 1.0), strict=True):
        names = {entry["name"] for trial in study.trials for entry in trial.user_attrs[EXECUTIONS]}
        used = [each for each in executions(cluster) if each.name in names]
        assert {each.inputs.literals["base"].scalar.primitive.float_value for each in used} == {base}
    assert len(cluster.executions) == 12


def test_a_study_that_is_looked_at_before_the_call_is_kept_too(cluster, tmp_path):
    cluster.instant = echo(seconds=0.1)

    def search():
        optimizer = Optimizer(quick.both, 1, 4, progress=False)
        optimizer.study.set_user_attr("note", "mine")
        return optimizer, optimizer()

    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 4, search()[1]))
    found = []

    async def again():
        optimizer, running = search()
        found.append(optimizer)
        await running

    Pod(cluster, tmp_path, 1).run(again)
    assert states(found[0].study) == ["COMPLETE"] * 4
    assert len(cluster.executions) == 8


def test_running_trials_that_an_old_checkpoint_lacks_are_found_in_flyte(cluster, tmp_path, monkeypatch, pauses):
    pauses.checkpoint_retries = (0.01,)
    cluster.instant = lambda _: Succeeded(outputs(1.0), 0.2 if len(cluster.executions) <= 4 else math.inf)
    save = SyncCheckpoint.save

    def failing(self, path):
        if len(cluster.executions) >= 3:
            raise OSError("503 SlowDown")
        return save(self, path)

    objective = with_options(quick.train)
    objective._session.options = dataclasses.replace(objective._session.options, seed=None)
    with monkeypatch.context() as throttled:
        throttled.setattr(SyncCheckpoint, "save", failing)
        Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 6, objective()))
    cluster.instant = echo()
    study = Pod(cluster, tmp_path, 1).run(lambda: ended_there(cluster, objective()))
    assert states(study) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 6


def test_a_second_kill_forgets_no_execution_that_is_not_asked_for_again_yet(cluster, tmp_path):
    cluster.instant = lambda execution: None
    pods, seen = itertools.count(), []

    async def slow_to_ask(trial: optuna.Trial):
        match next(pods):
            case 0:
                await asyncio.gather(quick.step(x=0.1), quick.step(x=0.2))
            case 1:
                await quick.step(x=0.1)
            case _:
                seen.extend(trial.user_attrs[EXECUTIONS])
        return 0.0

    def search():
        return Optimizer(slow_to_ask, 1, 1, progress=False)()

    async def killed_again():
        asked = cluster.counts["GetExecution"]
        task = asyncio.ensure_future(search())
        while cluster.counts["GetExecution"] < asked + 2:  # its own execution, and that of the call
            await asyncio.sleep(0.01)
        await kill_all()
        await asyncio.wait([task])

    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 2, search()))
    Pod(cluster, tmp_path, 1).run(killed_again)
    Pod(cluster, tmp_path, 2).run(search)
    assert {entry["name"] for entry in seen} == {each.name for each in executions(cluster)}
    assert not cluster.running()


@pytest.mark.parametrize("is_stored", [True, False])
@pytest.mark.parametrize("pod", [("eager", 1), ("another", 0)], ids=["next attempt", "next execution"])
def test_a_search_that_stops_early_ends_the_trials_that_it_has_adopted_and_not_asked_for(
    cluster, tmp_path, is_stored, pod
):
    name, attempt = pod
    if attempt == 0 and not is_stored:
        pytest.skip("only a storage outlives an execution")
    cluster.instant = lambda execution: None
    stored = {"storage": tmp_path / "s.journal", "resume": True} if is_stored else {}

    def search(concurrency, **options):
        return optimize(quick.train.task, concurrency=concurrency, n_trials=6, progress=False, **stored, **options)()

    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 3, search(3)))
    cluster.instant = echo()

    async def stopped_by_the_first():
        task = asyncio.ensure_future(search(1, callbacks=[lambda study, trial: study.stop()]))
        while not task.done():
            site = site_module.current_site()
            for each in site.sigterm.searches if site is not None else ():
                for execution in cluster.running():
                    if execution.name in each.launcher.taken:
                        execution.finish(echo()(execution))
            await asyncio.sleep(0.01)
        return await task

    study = Pod(cluster, tmp_path, attempt, name).run(stopped_by_the_first)
    assert sorted(states(study)) == ["COMPLETE", "FAIL", "FAIL"]
    assert [trial.user_attrs[LOST] for trial in study.trials if trial.state.name == "FAIL"] == [True, True]
    assert not cluster.running()
