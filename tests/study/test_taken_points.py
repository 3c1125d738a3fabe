"""Points that were tried already: which searches share them."""

import threading

import numpy as np
import pytest

from optuna_flyte_dsl import Category, InvalidOptionError, optimize
from optuna_flyte_dsl.study.attributes import SAME_AS


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
