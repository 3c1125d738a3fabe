"""The plan of a search: what it says, and what it finds wrong."""

import asyncio
import inspect
import math
import re
from typing import Annotated

import flytekit as fl
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optuna_flyte_dsl import (
    ArgumentError,
    Category,
    Constraint,
    Float,
    Integer,
    InvalidOptionError,
    Maximize,
    Minimize,
    Optimizer,
    Ordinal,
    OutOfRangeError,
    When,
    optimize,
)
from optuna_flyte_dsl.sampling.auto_sampler import has_gp
from optuna_flyte_dsl.search_plan import expected_duplicates

pytestmark = pytest.mark.newest

MODEL = "GPSampler where it suits, else TPESampler" if has_gp() else "TPESampler"
run: list[float] = []


@optimize(n_trials=20)
@fl.task
def train(lr: Annotated[float, Float(1e-3, 1e-1, log=True)], data: str = "wine") -> Minimize:
    run.append(lr)
    return lr


@pytest.fixture
def _all_packages(monkeypatch):
    monkeypatch.setattr("optuna_flyte_dsl.sampling.sampler_packages._is_installed", lambda package: True)


def test_a_plan_promises_no_gp_sampler_where_none_suits(monkeypatch):
    monkeypatch.setattr("optuna_flyte_dsl.search_plan.has_gp", lambda: True)

    def conditional(kernel: Category(["a", "b"]), gamma: Annotated[float, Float(0, 1), When("kernel", "a")] = 0.0):
        return gamma

    def many_choices(x: Category(list("abcdefghijklmnopqrstuvwxyz"))):
        return len(x)

    def samples(trial):
        return trial.suggest_float("x", 0, 1)

    tpe, gp = "TPESampler", "GPSampler where it suits, else TPESampler"
    for objective, model in ((conditional, tpe), (many_choices, tpe), (samples, gp), (train.task, gp)):
        plan = Optimizer(objective, 1, 5).plan()
        assert plan.sampler == f"AutoSampler: quasi-random points, then {model}"


def test_a_plan_says_what_would_run_and_runs_nothing():
    plan = train.plan(data="digits", timeout=60, retries=2, trial_timeout=5, concurrency=4, delay=0.5)
    assert str(plan) == (
        "train: 20 trials, 4 at once\n"
        "├── space of train: 1 parameter, infinitely many points\n"
        "│   ├── lr: Float(0.001, 0.1, log=True)\n"
        "│   └── data = 'digits' (fixed)\n"
        "├── duplicates: none to be expected\n"
        "├── directions: minimize\n"
        f"├── sampler: AutoSampler: quasi-random points, then {MODEL}\n"
        "├── pruner: none, because the objective cannot report\n"
        "├── storage: memory, so that the study ends with this process\n"
        "├── trials run: in threads of this process\n"
        "├── limits\n"
        "│   ├── the search ends after 60 s\n"
        "│   ├── a trial fails after 5 s\n"
        "│   ├── a trial that raises is run 2 more times\n"
        "│   ├── the search ends after 5 failures in a row, or 25 once a trial has succeeded\n"
        "│   └── 0.5 s lie between the starts of two trials\n"
        "└── looks wrong: nothing"
    )
    assert repr(plan) == "<plan of train: 20 trials, 0 warnings>"
    assert plan._repr_html_().startswith("<pre>train: 20 trials")
    assert plan.space == train.space.bind(data="digits")
    assert run == []


def test_a_plan_raises_what_the_call_would_raise():
    with pytest.raises(OutOfRangeError, match="`lr` must lie within"):
        train.plan(lr=9.0)
    with pytest.raises(ArgumentError, match="has no parameter `x`"):
        train.plan(x=1)
    with pytest.raises(InvalidOptionError, match="`n_trials` must"):
        train.plan(n_trials=0)
    with pytest.raises(OutOfRangeError, match="of an initial point"):
        train.plan(initial_points=[{"lr": 5}])


def test_a_parameter_of_an_option_s_name_is_the_objective_s():
    @optimize(n_trials=7)
    def own(x: Float(0, 1), seed: int) -> Minimize:
        return x

    plan = own.plan(seed=3)
    assert plan.space.fixed_values() == {"seed": 3}
    assert plan.n_trials == 7


def test_a_plan_names_the_constraints():
    plan = train.plan(constraints=[lambda lr: lr - 1])
    (constraint,) = plan.constraints
    assert constraint.startswith("`constraints[0]` (test_search_plan.py:")
    assert f"├── constraints: {constraint}" in str(plan)


def test_a_plan_names_directions_and_storages():
    @optimize(storage="postgresql://me:secret@host/db", resume=True, n_trials=50, executor="process")
    def two(x: Float(0, 1)) -> tuple[Minimize, Maximize, Constraint]: ...

    plan = two.plan()
    assert plan.directions == ("minimize", "maximize")
    assert plan.result_constraints == ("constraint 2",)
    assert "├── at most 0: constraint 2\n" in str(plan)
    assert plan.storage == "the study `two` in postgresql://host/db; `n_trials` is its total"
    assert plan.engine == "in worker processes of this machine"
    study = optuna.create_study(study_name="mine", sampler=optuna.samplers.RandomSampler(), direction="maximize")

    @optimize(study=study)
    def one(x: Float(0, 1)): ...

    given_study = one.plan()
    assert (given_study.storage, given_study.sampler) == ("the given study `mine`", "RandomSampler")
    assert given_study.directions == ("maximize",)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user:p/ss@host/db", "postgresql://"),
        ("postgresql://host/db?user=u&password=secret", "postgresql://host/db"),
        ("nonsense://:::secret@", "nonsense://"),
        ("search.journal", "search.journal"),
    ],
)
def test_no_password_is_shown(url, shown):
    plan = train.plan(storage=url)
    assert plan.storage.startswith(f"a new study in {shown}")
    assert "secret" not in str(plan)
    assert "p/ss" not in str(plan)
    assert f"begins with: the trials that fit of {shown}" in str(train.plan(warm_start=url))


def test_a_choice_that_the_storage_cannot_keep_is_found():
    @optimize(n_trials=20, storage="search.journal")
    def own(x: Category([(1, 2), (3, 4)]), y: Float(0, 1)) -> Minimize: ...

    with pytest.raises(InvalidOptionError, match="a storage keeps choices that are None"):
        own.plan()


def test_an_option_with_a_similar_name_is_named():
    with pytest.raises(ArgumentError, match=r"no parameter `n_trails`.*the option `n_trials` has a similar name"):
        train.plan(n_trails=3)


def test_duplicates_are_expected_as_the_options_say():
    @optimize(n_trials=50)
    def own(x: Integer(1, 20), y: Integer(1, 2)) -> Minimize: ...

    assert own.plan().expected_duplicates > 10
    assert own.plan(duplicates="resample").expected_duplicates == 10
    assert own.plan(duplicates="resample", stop_when_exhausted=True).expected_duplicates == 0
    assert own.plan(sampler=optuna.samplers.BruteForceSampler).expected_duplicates == 0


def test_a_function_that_samples_by_itself_has_a_plan():
    async def own(trial, center: float):
        return (trial.suggest_float("x", 0, 1) - center) ** 2

    plan = Optimizer(own, concurrency=2, n_trials=10).plan(0.5)
    assert "├── space: the objective samples by `trial`" in str(plan)
    assert (plan.pruner, plan.engine) == ("MedianPruner", "in the event loop of this process")
    assert math.isinf(plan.n_points)


def wrong(space=None, **options):
    """Return the warnings of a plan, a line each."""

    def objective(**given): ...

    kind = inspect.Parameter.KEYWORD_ONLY
    markers = (space or {"x": Float(0, 1)}).items()
    objective.__signature__ = inspect.Signature(
        [inspect.Parameter(name, kind, annotation=each) for name, each in markers]
    )
    return "\n".join(optimize(**{"n_trials": 40, **options})(objective).plan().warnings)


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"space": {"x": Float(1e-5, 1e-1)}}, "`x`: Float.1e-05, 0.1. spans 4 powers of ten, .* log=True"),
        ({"space": {"x": Integer(1, 10**5)}}, "spans 5 powers of ten"),
        ({"space": {"x": Category(["a"]), "y": Float(0, 1)}}, "`x`: .* has a single choice"),
        ({"space": {"x": Category([16, 32, 64]), "y": Float(0, 1)}}, r"Write `Ordinal\(\[16, 32, 64\]\)`"),
        ({"n_trials": 1}, "runs a single trial"),
        ({"concurrency": 50}, "`concurrency=50` is more than the 40 trials"),
        ({"concurrency": 30}, "30 of the 40 trials start before any has ended"),
        ({"space": {"x": Integer(1, 5)}}, "The space has 5 points, fewer than the 40 trials"),
        (
            {"space": {"x": Integer(1, 100), "y": Integer(1, 100)}, "sampler": optuna.samplers.BruteForceSampler},
            "goes through all of its 10000 points .* 40 trials see 0.4% of them",
        ),
        (
            {"space": {"x": Integer(1, 100)}, "sampler": optuna.samplers.GridSampler({"x": list(range(1, 81))})},
            "goes through all of its 80 points .* 40 trials see 50.0% of them",
        ),
        (
            {"space": {"x": Category(["a", "b"]), "y": Float(0, 1)}, "sampler": optuna.samplers.CmaEsSampler},
            "CmaEsSampler draws `x` at random",
        ),
        ({"seed": 1, "concurrency": 2}, "With `seed=1` and 2 trials at once"),
        ({"constraints": [lambda x: x - 0.01]}, "The constraints allow [0-9]+ of 1000 random points"),
        ({"constraints": [lambda x: x + 1]}, "The constraints allow none of 1000 random points"),
        ({"executor": "process", "concurrency": 1000, "n_trials": 3000}, "1000` worker processes share .* core"),
    ],
)
@pytest.mark.usefixtures("_all_packages")
def test_what_looks_wrong_is_named(options, warning):
    assert re.search(warning, wrong(**options)), wrong(**options)


def test_what_is_right_is_not_named():
    assert not wrong()
    assert not wrong(space={"x": Float(1e-5, 1e-1, log=True), "y": Ordinal([1, 2, 3]), "z": Category([True, False])})
    assert not wrong(space={"x": Integer(1, 5)}, n_trials=9, stop_when_exhausted=True, duplicates="resample")
    assert not wrong(seed=1, concurrency=2, deterministic=True)
    assert not wrong(constraints=[lambda x: x - 0.5])
    assert not wrong(space={"x": Float(1, 100_001, step=1)})
    assert not wrong(space={"x": Category({"a": 1, "b": 2, "c": 3}), "y": Float(0, 1)})
    assert not wrong(seed=1, concurrency=4, sampler=optuna.samplers.RandomSampler)
    assert not wrong(space={"x": Integer(1, 4)}, sampler=optuna.samplers.BruteForceSampler)
    assert not wrong(space={"x": Integer(1, 100)}, sampler=optuna.samplers.GridSampler({"x": list(range(1, 9))}))


@pytest.mark.usefixtures("_all_packages")
def test_a_sampler_that_draws_conditional_parameters_at_random_is_named():
    @optimize(n_trials=40, sampler=optuna.samplers.GPSampler)
    def own(
        kernel: Category(["a", "b"]), gamma: Annotated[float, Float(0, 1), When("kernel", "a")] = 0.0
    ) -> Minimize: ...

    assert "GPSampler draws `gamma` at random, because it is not always active" in own.plan().warnings[0]


@given(st.integers(1, 30), st.integers(0, 40))
def test_the_expected_duplicates_are_those_of_uniform_draws(n_points, n_trials):
    found = expected_duplicates(n_points, n_trials)
    # The chance that a draw is new, given how many are known, in exact steps.
    distinct = 0.0
    for _ in range(n_trials):
        distinct += 1 - distinct / n_points
    assert found == pytest.approx(n_trials - distinct, abs=1e-9)
    assert expected_duplicates(math.inf, n_trials) == 0


def test_the_expected_duplicates_are_those_that_a_random_search_has():
    @optimize(n_trials=60, sampler=optuna.samplers.RandomSampler, progress=False)
    def own(x: Integer(1, 10), y: Integer(1, 10)) -> Minimize:
        return 0.0

    found = []
    for seed in range(30):
        study = asyncio.run(own.with_options(seed=seed)())
        found.append(60 - len({tuple(trial.params.values()) for trial in study.trials}))
    mean, expected = sum(found) / len(found), own.plan().expected_duplicates
    assert abs(mean - expected) < 2.5  # five standard errors
