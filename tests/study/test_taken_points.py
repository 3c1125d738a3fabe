"""Points that were tried already: which searches share them."""

import os
import subprocess
import sys
import threading

import numpy as np
import optuna
import pytest

from optuna_flyte_dsl import Category, Float, InvalidOptionError, optimize
from optuna_flyte_dsl.study.attributes import SAME_AS
from optuna_flyte_dsl.study.content_hash import content_hash
from optuna_flyte_dsl.study.storages import open_storage


class Data:
    """Its text does not tell what it holds."""

    def __init__(self, values):
        self.values = values

    def __repr__(self):
        return "Data(...)"


def middle_changed():
    other = np.zeros(2000)
    other[1000] = 1.0
    return other


def objective(tmp_path):
    @optimize(n_trials=2, storage=tmp_path / "study.journal", study_name="s", duplicates="reuse", progress=False)
    def total(kind: Category(["only"]), data) -> float:
        return float(sum(data.values if isinstance(data, Data) else data))

    return total


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.zeros(2000), middle_changed()),
        (Data([1.0]), Data([2.0])),
        ([0.1] * 30, [0.1] * 29 + [0.2]),
    ],
)
def test_values_are_reused_for_arguments_of_the_same_content_only(tmp_path, first, second):
    search = objective(tmp_path)
    for data in (first, second, first):
        study = search.run_sync(data=data)
        expected = float(sum(data.values if isinstance(data, Data) else data))
        assert [trial.value for trial in study.trials[-2:]] == [expected] * 2
    assert [trial.user_attrs.get(SAME_AS) for trial in study.trials] == [None, 0, None, 2, 0, 0]


def test_an_argument_that_cannot_be_told_apart_is_refused(tmp_path):
    search = objective(tmp_path)
    with pytest.raises(InvalidOptionError, match=r"the fixed argument `data` cannot be told apart.*the path of a file"):
        search.run_sync(data=threading.Lock())


@pytest.mark.filterwarnings("ignore:Fixed parameter")
def test_points_outside_of_the_space_are_not_taken_for_one_another(tmp_path):
    storage = tmp_path / "study.journal"

    def square(x: Float(0, 10, step=1)) -> float:
        return x * x

    def narrow(x: Float(0, 2, step=1)) -> float:
        return x * x

    options = {"storage": storage, "study_name": "s", "progress": False, "concurrency": 1, "duplicates": "reuse"}
    points = [{"x": 8.0}, {"x": 9.0}]
    optimize(square, n_trials=2, initial_points=points, **options).run_sync()
    study = optuna.load_study(study_name="s", storage=open_storage(storage))
    for x in (7.0, 6.0):
        study.enqueue_trial({"x": x})
    study = optimize(narrow, n_trials=4, **options).run_sync()
    assert [trial.value for trial in study.trials if trial.state.name == "COMPLETE"][:2] == [64.0, 81.0]
    for trial in study.trials[2:]:
        assert trial.value in (None, trial.params.get("x", 0.0) ** 2)


@pytest.mark.newest
def test_the_hash_of_a_set_is_the_same_in_each_process_and_that_of_a_masked_array_knows_the_mask():
    program = "from optuna_flyte_dsl.study.content_hash import content_hash; print(content_hash(frozenset('abcdefgh')))"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(hashes) == 1
    first, second = np.ma.array([1.0, 2.0], mask=[0, 1]), np.ma.array([1.0, 2.0], mask=[1, 0])
    assert content_hash(first) == content_hash(first.copy()) != content_hash(second)
