"""Arguments that flytekit cannot convert."""

import dataclasses
import itertools

import flytekit as fl
import optuna
import pytest
import quick
from flytekit.core.type_engine import DataclassTransformer

from optuna_flyte_dsl import FixedArgumentError, Float, optimize
from optuna_flyte_dsl.engines._flytekit import flytekit_runner
from tests.support.cluster_searches import echo, there
from tests.support.flyteadmin import FlyteAdmin


@dataclasses.dataclass
class Data:
    rows: list[int]


@optimize(n_trials=4, progress=False)
@fl.task
def train(x: Float(0, 1), data: Data, scale: float = 1.0) -> float:
    return x * scale


def test_an_argument_that_flyte_cannot_convert_ends_the_search_at_its_first_trial():
    with pytest.raises(FixedArgumentError, match=r"`train`: Flyte cannot convert the argument `data` to Data: it is '"):
        train.run_sync(data="rows.csv")
    assert [trial.state.name for trial in train.study.trials] == ["FAIL"]
    assert train.run_sync(data=Data([1])).best_value >= 0


def test_an_error_of_the_task_itself_is_a_failed_trial():
    @optimize(n_trials=2, progress=False, catch=(Exception,))
    def calls_it(x: Float(0, 1)) -> float:
        return train.task(x=x, data="rows.csv")  # not an argument of the search

    assert [trial.state.name for trial in calls_it.run_sync().trials] == ["FAIL"] * 2


def test_on_a_cluster_too(tmp_path):
    with FlyteAdmin(tmp_path, instant=echo()) as cluster:
        _refuse_it(cluster)


def _refuse_it(cluster):
    with pytest.raises(FixedArgumentError, match="cannot convert the argument `prepared` to Prepared"):
        there(quick.reads_prepared, cluster).run_sync(prepared="data.csv")
    assert not cluster.executions


@pytest.mark.parametrize(
    ("error", "failing"),
    [
        (TypeError("wrong just now"), {2, 3}),  # after a trial has got the argument
        (OSError(28, "No space left on device"), {1, 2}),  # an error that may pass
        (TypeError("wrong just now"), {1}),  # the conversion succeeds when it is tried again
    ],
)
def test_a_conversion_that_fails_for_a_while_is_a_failed_trial(monkeypatch, error, failing):
    convert, calls = DataclassTransformer.to_literal, itertools.count(1)

    def fail(self, *args):
        if next(calls) in failing:
            raise error
        return convert(self, *args)

    monkeypatch.setattr(DataclassTransformer, "to_literal", fail)
    states = [trial.state.name for trial in train.run_sync(data=Data([1])).trials]
    assert states.count("FAIL") >= 1
    assert states[-1] == "COMPLETE"


def test_a_pruned_trial_converts_nothing_again(monkeypatch):
    checked = []
    monkeypatch.setattr(flytekit_runner, "refused_argument", lambda *args: checked.append(args))

    @optimize(n_trials=2, progress=False)
    def prunes(trial, x: Float(0, 1)) -> float:
        raise optuna.TrialPruned

    assert [trial.state.name for trial in prunes.run_sync().trials] == ["PRUNED"] * 2
    assert checked == []
