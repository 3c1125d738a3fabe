"""Earlier trials in a new study."""

import asyncio
import logging
from typing import Annotated

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from optuna_flyte_dsl import (
    Category,
    Constraint,
    Float,
    Integer,
    InvalidOptionError,
    Maximize,
    Minimize,
    Ordinal,
    SearchSpace,
    When,
    optimize,
)
from optuna_flyte_dsl.study.attributes import WARM_START
from optuna_flyte_dsl.testing import strategies


@optimize(n_trials=6, progress=False, seed=1)
def train(x: Float(0, 1), n: Integer(1, 9) = 3) -> Minimize:
    return x + n


def warm(study):
    return [trial for trial in study.trials if WARM_START in trial.user_attrs]


def search(objective, source, **options):
    return asyncio.run(objective.with_options(warm_start=source, **options)())


def test_earlier_trials_are_there_before_the_first_one(caplog):
    earlier = train.run_sync()
    study = search(train, earlier)
    assert [trial.params for trial in study.trials[:6]] == [trial.params for trial in earlier.trials]
    assert [trial.values for trial in study.trials[:6]] == [trial.values for trial in earlier.trials]
    assert [trial.datetime_start for trial in warm(study)] == [trial.datetime_start for trial in earlier.trials]
    assert len(study.trials) == 12
    assert len(warm(study)) == 6
    assert caplog.records == []


def test_the_sampler_learns_from_earlier_trials():
    seen = []

    class Sampler(optuna.samplers.RandomSampler):
        def sample_relative(self, study, trial, search_space):
            seen.append(len(study.get_trials(states=(TrialState.COMPLETE,))))
            return super().sample_relative(study, trial, search_space)

    search(train, train.run_sync(), sampler=Sampler, seed=None)
    assert seen[0] == 6


def test_earlier_trials_do_not_count_towards_the_total(tmp_path):
    earlier = train.run_sync()
    storage = str(tmp_path / "study.journal")
    study = search(train, earlier, storage=storage, resume=True, n_trials=4)
    assert (len(warm(study)), len(study.trials)) == (6, 10)
    study = search(train, earlier, storage=storage, resume=True, n_trials=5)
    assert (len(warm(study)), len(study.trials)) == (6, 11)
    assert len(search(train, earlier, storage=storage, resume=True, n_trials=5).trials) == 11


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_storage_is_a_source(tmp_path, kind):
    source = str(tmp_path / "old.journal") if kind == "journal" else f"sqlite:///{tmp_path}/old.db"
    for name in ("one", "two"):
        train.with_options(storage=source, study_name=name, n_trials=2).run_sync()
    assert len(warm(search(train, source))) == 4
    assert len(warm(search(train, [source, train.run_sync()]))) == 10
    with pytest.raises(InvalidOptionError, match=r"the file .*none.* does not exist"):
        search(train, source.replace("old", "none"))
    assert len(warm(search(train, source, storage=source, study_name="one"))) == 2  # not those of its own


def test_what_does_not_fit_is_counted_and_named(caplog):
    earlier = optuna.create_study(study_name="old")
    space = {"x": optuna.distributions.FloatDistribution(0, 5), "n": optuna.distributions.IntDistribution(1, 9)}
    add = optuna.trial.create_trial
    for x in [0.5, 2.0, 3.0]:
        earlier.add_trial(add(value=x, params={"x": x, "n": 2}, distributions=space))
    more = {**space, "y": optuna.distributions.FloatDistribution(0, 1)}
    earlier.add_trial(add(value=1.0, params={"x": 0.5, "n": 2, "y": 0.5}, distributions=more))
    earlier.add_trial(add(value=1.0, params={"x": 0.5}, distributions={"x": space["x"]}))
    earlier.add_trial(add(state=TrialState.FAIL))
    study = search(train, earlier)
    assert [trial.params for trial in warm(study)] == [{"x": 0.5, "n": 2}]
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage() == (
        "`train` begins with 1 earlier trial. 4 do not fit, and are left out. Trial 1 of old, 2 of old: `x` lies "
        "outside of Float(0, 1). Trial 3 of old: this search has no parameter `y`. Trial 4 of old: they lack `n`."
    )


def test_fixed_arguments_decide_which_trials_fit():
    earlier = train.run_sync()
    n = earlier.trials[0].params["n"]
    study = asyncio.run(train.with_options(warm_start=earlier)(n=n))
    same = [trial for trial in earlier.trials if trial.params["n"] == n]
    assert [trial.params for trial in warm(study)] == [{"x": trial.params["x"]} for trial in same]


def test_studies_with_other_directions_do_not_fit(caplog):
    @optimize(n_trials=2, progress=False)
    def other(x: Float(0, 1), n: Integer(1, 9)) -> Maximize:
        return x

    assert warm(search(train, other.run_sync())) == []
    assert "their study has the directions maximize, and this one minimize" in caplog.text


def test_choices_of_an_ordinal_are_found_by_their_labels():
    def make(marker):
        @optimize(n_trials=8, progress=False, seed=3)
        def sized(size: marker) -> Minimize:
            return float(size)

        return sized

    earlier = make(Ordinal([16, 32, 64])).run_sync()
    for marker in (Ordinal([64, 16, 8]), Category([64, 16])):
        study = search(make(marker), earlier)
        space = make(marker).space
        values = [space.values_of(trial.params)["size"] for trial in warm(study)]
        assert values == [int(trial.value) for trial in earlier.trials if trial.value != 32]
    back = search(make(Ordinal([16, 64])), make(Category([64, 16, 8])).run_sync())
    assert all(trial.params["size"] == [16, 64].index(int(trial.value)) for trial in warm(back))


def test_constraints_and_intermediate_values_are_kept():
    @optimize(n_trials=4, progress=False, seed=1)
    def limited(x: Float(-1, 1), trial: optuna.Trial) -> tuple[Minimize, Constraint]:
        trial.report(x, 0)
        return x, -x

    earlier = limited.run_sync()
    study = search(limited, earlier)
    assert [trial.intermediate_values for trial in warm(study)] == [
        trial.intermediate_values for trial in earlier.trials
    ]
    assert study.best_value >= 0


@given(strategies.spaces(), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_each_trial_of_a_space_fits_it(space, seed):
    from optuna_flyte_dsl.space.objective import Objective
    from optuna_flyte_dsl.study.warm_start import WarmStarter

    earlier = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(3):
        trial = earlier.ask()
        space.suggest(trial)
        earlier.tell(trial, 1.0)
    study = optuna.create_study()
    assert WarmStarter(study, Objective.of(train.task), space).insert(earlier) == 3
    assert [trial.params for trial in study.trials] == [trial.params for trial in earlier.trials]
    assert WarmStarter(study, Objective.of(train.task), space).insert(earlier) == 0


def test_parameters_that_are_not_active_need_no_value():
    def conditional(
        kernel: Category(["a", "b"]), gamma: Annotated[float, Float(0, 1), When("kernel", "a")] = 0.0
    ) -> Minimize: ...

    from optuna_flyte_dsl.space.objective import Objective
    from optuna_flyte_dsl.study.warm_start import WarmStarter

    space = SearchSpace.of(conditional)
    earlier, study = optuna.create_study(), optuna.create_study()
    kernels = {"kernel": optuna.distributions.CategoricalDistribution(("a", "b"))}
    for kernel in "ab":
        earlier.add_trial(optuna.trial.create_trial(value=1, params={"kernel": kernel}, distributions=kernels))
    assert WarmStarter(study, Objective.of(conditional), space).insert(earlier) == 1
    assert study.trials[0].params == {"kernel": "b"}


@pytest.mark.parametrize("source", [3, [None], optuna.storages.RDBStorage])
def test_what_is_neither_a_study_nor_a_storage_is_refused(source):
    with pytest.raises(InvalidOptionError, match="`warm_start` must be"):
        train.with_options(warm_start=source)


def test_an_empty_storage_is_refused():
    with pytest.raises(InvalidOptionError, match="`warm_start`: the storage has no study"):
        search(train, optuna.storages.InMemoryStorage())
