"""The calls of one trial."""

import asyncio
import collections
import math

import optuna
import quick
from flytekit.exceptions.eager import EagerException

from optuna_flyte_dsl import ExecutionFailedError, Optimizer
from optuna_flyte_dsl.engines._flytekit.cluster.executions import INPUTS_DIGEST
from optuna_flyte_dsl.study.attributes import EXECUTIONS
from tests.support.cluster_searches import ended_there, executions, outputs, states, there
from tests.support.eager_pod import Pod, killed_after
from tests.support.flyteadmin import Failed, Fault, Succeeded
from tests.support.flyteadmin.executions import PHASES


def test_a_callback_launches_several_and_each_has_a_name_of_its_own(cluster):
    study = there(Optimizer(quick.both, 2, 4, progress=False), cluster).run_sync()
    assert states(study) == ["COMPLETE"] * 4
    assert len(cluster.executions) == 8
    assert all(trial.value == 2 * trial.params["x"] for trial in study.trials)


def test_a_callback_in_a_thread_calls_sync_tasks(cluster):
    study = there(Optimizer(quick.blocking, 3, 3, progress=False), cluster).run_sync()
    assert [trial.value for trial in study.trials] == [trial.params["x"] for trial in study.trials]


def test_a_callback_can_catch_the_failure_of_an_execution(cluster):
    cluster.instant = lambda execution: Failed()

    async def catches(trial: optuna.Trial):
        try:
            await quick.step(x=1.0)
        except EagerException as error:
            return 5.0 if isinstance(error, ExecutionFailedError) else 0.0

    study = there(Optimizer(catches, 1, 2, progress=False), cluster).run_sync()
    assert [trial.value for trial in study.trials] == [5.0, 5.0]


def test_an_execution_that_is_there_with_the_same_inputs_is_adopted(cluster, monkeypatch):
    monkeypatch.setattr("uuid.uuid4", lambda: type("Fixed", (), {"hex": "0" * 32, "bytes": b"0"})())
    first = there(quick.train, cluster).run_sync()
    again = there(quick.train, cluster).run_sync()  # the same seed, so the same inputs
    assert len(cluster.executions) == 6
    assert [trial.value for trial in again.trials] == [trial.value for trial in first.trials]


def test_an_execution_that_is_there_with_other_inputs_is_not_taken(cluster, monkeypatch):
    monkeypatch.setattr("uuid.uuid4", lambda: type("Fixed", (), {"hex": "0" * 32, "bytes": b"0"})())
    there(quick.train, cluster).run_sync()
    study = there(quick.train, cluster).run_sync(base=9.0)
    assert len(cluster.executions) == 12
    assert states(study) == ["COMPLETE"] * 6
    bases = collections.Counter(
        each.inputs.literals["base"].scalar.primitive.float_value for each in executions(cluster)
    )
    assert bases == {3.0: 6, 9.0: 6}


def test_an_execution_of_another_program_is_neither_adopted_nor_believed(cluster, monkeypatch):
    """flyteadmin returns the inputs of the refused request for a name that is taken."""
    monkeypatch.setattr("uuid.uuid4", lambda: type("Fixed", (), {"hex": "0" * 32, "bytes": b"0"})())
    first = there(quick.train, cluster).run_sync()
    for execution in executions(cluster):
        del execution.spec.annotations.values[INPUTS_DIGEST]
    again = there(quick.train, cluster).run_sync()
    assert cluster.counts["TerminateExecution"] == 0
    assert states(first) == states(again) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 12


def test_a_name_is_looked_up_before_a_launch_whose_answer_was_lost_is_sent_again(cluster):
    cluster.fail("CreateExecution", Fault(done=True, times=3))
    assert states(there(quick.train, cluster).run_sync()) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 6
    assert cluster.counts["CreateExecution"] == 6, "none was sent twice"
    assert cluster.counts["GetExecution"] == 3


def test_calls_that_a_function_awaits_in_another_order_are_found_again(cluster, tmp_path):
    chains, alive = 4, [True]

    def outcome(execution):
        given = execution.inputs.literals
        x, base = (given[name].scalar.primitive.float_value for name in ("x", "base"))
        if base == 1.0:  # the first step of a chain: that of the last chain ends first
            return Succeeded(outputs(x), 0.2 * (chains - x))
        return Succeeded(outputs(x), math.inf if alive[0] else 0.0)

    async def parallel(trial: optuna.Trial):
        async def chain(x):
            return await quick.step(x=await quick.step(x=x, base=1.0), base=2.0)

        return sum(await asyncio.gather(*(chain(float(k)) for k in range(chains))))

    def search():
        return Optimizer(parallel, 1, 1, progress=False)()

    cluster.instant = outcome
    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 2 * chains, search()))
    alive[0] = False
    study = Pod(cluster, tmp_path, 1).run(lambda: ended_there(cluster, search()))
    assert states(study) == ["COMPLETE"]
    assert len(cluster.executions) == 2 * chains
    assert {each.phase for each in executions(cluster)} == {PHASES.SUCCEEDED}


def test_equal_calls_of_one_function_have_an_execution_each(cluster, tmp_path):
    study = Pod(cluster, tmp_path, 0).run(Optimizer(quick.both, 2, 3, progress=False))
    assert states(study) == ["COMPLETE"] * 3
    assert len(cluster.executions) == 6


def test_a_trial_in_its_second_attempt_is_continued_there(cluster, tmp_path):
    def outcome(_):
        number = len(cluster.executions)
        return Failed() if number == 1 else None if number == 2 else Succeeded(outputs(1.0))

    def search():
        return Optimizer(quick.train.task, 1, 1, retries=1, progress=False)()

    cluster.instant = outcome
    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 2, search()))
    study = Pod(cluster, tmp_path, 1).run(lambda: ended_there(cluster, search()))
    assert states(study) == ["COMPLETE"]
    assert len(cluster.executions) == 2
    assert [entry["name"] for entry in study.trials[0].user_attrs[EXECUTIONS]] == [
        each.name for each in executions(cluster)
    ]
