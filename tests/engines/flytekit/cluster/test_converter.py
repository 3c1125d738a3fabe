"""Inputs and outputs."""

from pathlib import Path

import numpy as np
import optuna
import pytest
import quick

from optuna_flyte_dsl import Optimizer, RefusedError
from optuna_flyte_dsl._compat.flytekit import wrap_literal_cache
from optuna_flyte_dsl.engines._flytekit.cluster.admin import Admin
from optuna_flyte_dsl.engines._flytekit.literal_cache import LockedLiteralCache
from tests.support.cluster_searches import echo, executions, there
from tests.support.eager_pod import Pod, killed_after
from tests.support.flyteadmin import Execution
from tests.support.small_searches import states


def test_inputs_that_a_call_leaves_out_are_filled_in(cluster):
    there(quick.train, cluster).run_sync()
    for execution in executions(cluster):
        assert execution.inputs.literals["base"].scalar.primitive.float_value == 3.0
        assert execution.inputs.literals["name"].scalar.union.value.scalar.HasField("none_type")
    cluster.executions.clear()
    there(Optimizer(quick.both, 1, 1, progress=False), cluster).run_sync()
    assert [each.inputs.literals["base"].scalar.primitive.float_value for each in executions(cluster)] == [3.0, 3.0]


def test_a_local_file_is_uploaded(cluster, tmp_path):
    (tmp_path / "data.txt").write_text("hello")
    study = there(quick.reads, cluster).run_sync(file=str(tmp_path / "data.txt"))
    assert states(study) == ["COMPLETE"] * 3
    for execution in executions(cluster):
        assert Path(execution.inputs.literals["file"].scalar.blob.uri).read_text() == "hello"


def test_outputs_that_flyteadmin_leaves_out_for_their_size_are_read_from_their_address(cluster):
    cluster.max_download = 0
    study = there(quick.train, cluster).run_sync()
    assert states(study) == ["COMPLETE"] * 6
    cluster.max_download = 2**20
    assert [trial.value for trial in there(quick.train, cluster).run_sync().trials] == [
        trial.value for trial in study.trials
    ]


def test_numbers_of_numpy_are_kept_as_attributes(cluster, tmp_path):
    async def notes(trial: optuna.Trial):
        trial.set_user_attr("accuracy", np.float32(0.5))
        return await quick.step(x=trial.suggest_float("x", 0, 1))

    optimizer = Optimizer(notes, 1, 2, progress=False)
    Pod(cluster, tmp_path, 0).run(optimizer)
    assert states(optimizer.study) == ["COMPLETE"] * 2
    again = Optimizer(notes, 1, 2, progress=False)
    Pod(cluster, tmp_path, 1).run(again)
    assert [trial.user_attrs["accuracy"] for trial in again.study.trials] == [0.5, 0.5]


def test_outputs_that_are_left_out_without_an_address_are_refused_with_the_cure(cluster, monkeypatch):
    cluster.max_download = 0
    monkeypatch.setattr(Execution, "outputs_uri", property(lambda self: "", lambda self, value: None), raising=False)
    with pytest.raises(RefusedError, match=r"lacks the outputs of the execution .*maxDownloadMBs.*FlyteFile"):
        there(quick.train, cluster).run_sync()


def test_the_cache_of_literals_that_all_threads_share_has_a_lock_on_a_cluster_too(cluster):
    there(quick.train, cluster).run_sync()
    wrap_literal_cache(lambda inner: pytest.fail("it must be wrapped already"), LockedLiteralCache)


def test_inputs_that_flyteadmin_leaves_out_do_not_stop_a_recovery(cluster, tmp_path, monkeypatch):
    cluster.instant = echo(seconds=0.2)
    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 4, quick.train()))
    call = Admin.call

    def without_inputs(self, rpc, request, **limits):
        answer = call(self, rpc, request, **limits)
        if rpc == "GetExecutionData":
            answer.ClearField("full_inputs")
            answer.ClearField("inputs")
        return answer

    monkeypatch.setattr(Admin, "call", without_inputs)
    assert states(Pod(cluster, tmp_path, 2).run(quick.train)) == ["COMPLETE"] * 6
    assert not cluster.running()
