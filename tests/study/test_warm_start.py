"""Earlier trials in a new study."""

import asyncio
import logging
from typing import Annotated, NamedTuple

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


def test_a_search_that_begins_with_its_own_storage_every_night_does_not_grow(tmp_path):
    storage = str(tmp_path / "nights.journal")
    nightly = train.with_options(storage=storage, n_trials=4)
    nightly.run_sync()
    for night in range(1, 4):  # each has a study of its own, with copies of all earlier trials
        study = nightly.with_options(warm_start=storage, seed=night).run_sync()
        assert (len(warm(study)), len(study.trials)) == (4 * night, 4 * night + 4)
    twice = search(train, [train.run_sync()] * 2)
    assert len(warm(twice)) == 6


def test_a_warm_start_that_was_cut_off_is_completed(tmp_path, monkeypatch):
    options = {"resume": True, "n_trials": 4}
    old, new = str(tmp_path / "old.journal"), str(tmp_path / "new.journal")
    train.with_options(storage=old, **{**options, "n_trials": 10}).run_sync()
    add, n_added = optuna.Study.add_trial, 0

    def cut_off(self, trial):
        nonlocal n_added
        n_added += 1
        if n_added > 3:
            raise KeyboardInterrupt
        add(self, trial)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "add_trial", cut_off)
        with pytest.raises(KeyboardInterrupt):
            search(train, old, storage=new, **options)
    study = search(train, old, storage=new, **options)
    assert (len(warm(study)), len(study.trials)) == (10, 14)
    train.with_options(storage=old, **{**options, "n_trials": 12}).run_sync()
    assert len(warm(search(train, old, storage=new, **options))) == 12


def test_trials_of_two_studies_of_one_name_are_told_apart(tmp_path):
    options = {"resume": True, "n_trials": 4}
    for name in "ac":
        train.with_options(storage=str(tmp_path / f"{name}.journal"), **options).run_sync()
    new = str(tmp_path / "b.journal")
    search(train, str(tmp_path / "a.journal"), storage=new, **options)
    assert len(warm(search(train, str(tmp_path / "c.journal"), storage=new, **options))) == 8


def test_what_the_new_search_does_not_allow_does_not_fit(tmp_path, caplog):
    earlier = train.run_sync()
    study = search(train, earlier, constraints=[lambda x: 0.5 - x])
    assert all(trial.params["x"] >= 0.5 for trial in study.trials)
    assert "of a study without a name: `constraints[0]`" in caplog.text

    @optimize(n_trials=2, progress=False)
    def limited(x: Float(0, 1), n: Integer(1, 9)) -> tuple[Minimize, Constraint]:
        return x, 0.5 - x

    assert warm(search(limited, earlier)) == []
    assert "no values of the 1 constraint that this search has on its results" in caplog.text

    @optimize(n_trials=3, progress=False, storage=str(tmp_path / "a.journal"), resume=True)
    def fitted(x: Float(0, 1), data: str = "wine") -> Minimize:
        return x

    fitted.run_sync(data="digits")
    study = fitted.with_options(storage=None, resume=False, warm_start=str(tmp_path / "a.journal")).run_sync()
    assert warm(study) == []
    assert "run with data='digits', and this search has 'wine'" in caplog.text


def test_a_value_that_the_new_search_fixes_is_compared_as_a_value():
    @optimize(n_trials=8, progress=False, seed=1)
    def named(x: Float(0, 1), k: Category({"small": (1, 1), "large": (2, 2)}), size: Ordinal([16, 32])) -> Minimize:
        return x

    earlier = named.run_sync()
    study = asyncio.run(named.with_options(warm_start=earlier)(k="small", size=32))
    fitting = [trial for trial in earlier.trials if (trial.params["k"], trial.params["size"]) == ("small", 1)]
    assert fitting
    assert [trial.params for trial in warm(study)] == [{"x": trial.params["x"]} for trial in fitting]


def test_an_earlier_float_becomes_the_int_that_the_parameter_is():
    earlier = optuna.create_study()
    floats = {"x": optuna.distributions.FloatDistribution(0, 1), "n": optuna.distributions.FloatDistribution(0, 9)}
    earlier.add_trial(optuna.trial.create_trial(value=-1, params={"x": 0.5, "n": 3.0}, distributions=floats))
    study = search(train, earlier)
    assert type(train.best(study)["n"]) is int


def test_points_that_were_tried_before_are_not_tried_again():
    ran = []

    @optimize(n_trials=9, progress=False, duplicates="resample", stop_when_exhausted=True)
    def small(n: Integer(1, 4)) -> Minimize:
        ran.append(n)
        return float(n)

    earlier = small.with_options(n_trials=2).run_sync()
    search(small, earlier)
    assert sorted(ran) == [1, 2, 3, 4]


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
        "`train` begins with 1 earlier trial. 4 do not fit, and are left out. Trials 1, 2 of old: `x` lies "
        "outside of Float(0, 1). Trial 3 of old: this search has no parameter `y`. Trial 4 of old: no value for `n`."
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
    assert "its directions are maximize, and those of this search minimize" in caplog.text


def test_studies_with_other_objectives_do_not_fit(caplog):
    class Scores(NamedTuple):
        loss: Minimize
        seconds: Minimize

    class Swapped(NamedTuple):
        seconds: Minimize
        loss: Minimize

    def one(x: Float(0, 1)) -> Scores:
        return Scores(x, 1 - x)

    def other(x: Float(0, 1)) -> Swapped:
        return Swapped(x, 1 - x)

    earlier = optimize(one, n_trials=3, progress=False).run_sync()
    assert len(warm(search(optimize(one, n_trials=1, progress=False), earlier))) == 3
    assert warm(search(optimize(other, n_trials=1, progress=False), earlier)) == []
    assert "its objectives are `loss`, `seconds`, and those of this search `seconds`, `loss`" in caplog.text


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
