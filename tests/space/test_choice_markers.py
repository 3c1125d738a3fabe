"""Choices that have names, and choices that stand in an order."""

import enum
import pickle

import optuna
import pytest

from optuna_flyte_dsl import (
    ArgumentError,
    Category,
    Float,
    Integer,
    InvalidMarkerError,
    InvalidMarkerTypeError,
    InvalidOptionError,
    Ordinal,
    OutOfRangeError,
    SearchSpace,
    optimize,
    suggest,
)
from tests.support.spaces import Kernel, Size


class Text(enum.StrEnum):
    A = "letter a"
    B = "letter b"


def relu(x):
    return max(x, 0.0)


def objective(
    kernel: Category(Kernel), act: Category({"relu": relu, "round": round}), width: Ordinal([16, 32, 64]), x=None
) -> float:
    assert (kernel in Kernel, callable(act), width in (16, 32, 64)) == (True, True, True)
    return width / 16 + act(0.4)


SEARCH = optimize(objective, n_trials=12, seed=1, progress=False)


def test_optuna_stores_names_and_indices_and_the_objective_gets_the_choices():
    study = SEARCH.run_sync()
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
    assert {trial.params["kernel"] for trial in study.trials} <= {"LINEAR", "RBF"}
    assert {trial.params["act"] for trial in study.trials} <= {"relu", "round"}
    assert {trial.params["width"] for trial in study.trials} == {0, 1, 2}
    best = SEARCH.space.fill(study.best_params)
    assert (best["act"], best["width"]) == (round, 16)
    assert SEARCH.space.point(best) == study.best_params


def test_no_warning_of_optuna_is_shown_for_choices_with_names(recwarn):
    SEARCH.run_sync()
    assert [str(each.message) for each in recwarn if "categorical" in str(each.message)] == []


@pytest.mark.parametrize(
    ("given", "passed"),
    [({"act": "relu"}, relu), ({"act": relu}, relu), ({"width": 32}, 32), ({"kernel": "RBF"}, Kernel.RBF)],
)
def test_a_call_and_an_initial_point_take_a_choice_or_its_name(given, passed):
    (name,) = given
    assert SEARCH.space.bind(**given).arguments[name] is passed
    study = SEARCH.with_options(n_trials=1, initial_points=[given]).run_sync()
    assert SEARCH.space.fill(study.trials[0].params)[name] is passed


def test_an_ordinal_with_names_takes_them_too():
    space = SearchSpace.of(lambda x: 0.0).bind(x=Ordinal(Size))
    assert space["x"].named("LARGE") is Size.LARGE
    assert space.convert_point({"x": "LARGE"}) == {"x": 1}
    assert space.values_of({"x": 1}) == {"x": Size.LARGE}


def test_an_index_is_no_value():
    with pytest.raises(OutOfRangeError, match=r"`width` must lie within its marker Ordinal\(.*\), but got 2"):
        SEARCH.run_sync(width=2)


def test_a_name_that_is_another_choice_is_refused():
    for choices in ({"a": "b", "b": "a"}, enum.StrEnum("Swapped", {"A": "x", "B": "A"})):
        with pytest.raises(InvalidMarkerError, match=r"the name '.' of one choice is another choice.* Rename it"):
            Category(choices)
    assert Category({"a": "a", "b": "c"}).named("a") == "a"


def test_members_of_two_enums_have_no_names():
    other = enum.Enum("Other", {"LINEAR": "linear"})
    assert Category([Kernel.LINEAR, other.LINEAR]).names is None


def test_what_a_trial_has_stored_is_an_initial_point_again():
    study = SEARCH.run_sync()
    points = [SEARCH.space.values_of(trial.params) for trial in study.trials[:3]]
    again = SEARCH.with_options(n_trials=3, initial_points=points).run_sync()
    assert [trial.params for trial in again.trials] == [trial.params for trial in study.trials[:3]]
    with pytest.raises(OutOfRangeError, match=r"but got 1\. .* `space.values_of\(trial.params\)` makes the values"):
        SEARCH.with_options(initial_points=[{"width": 1}]).run_sync()
    for wrong in ({"width": 7}, {"width": -1}, {"width": True}, {"width": 0.5}, {"kernel": "nope"}, {"kernel": None}):
        with pytest.raises(ArgumentError, match=r"Give what a trial has stored"):
            SEARCH.space.values_of(wrong)


@pytest.mark.filterwarnings("ignore:Fixed parameter .?width")
def test_an_enqueued_index_that_is_none_fails_its_trial_only():
    study = optuna.create_study()
    study.enqueue_trial({"width": 64, "kernel": "RBF", "act": "relu"})
    SEARCH.with_options(study=study, sampler=None, seed=None, n_trials=2).run_sync()
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]


def test_a_suggestion_of_a_call_takes_the_choices_of_the_signature():
    space = SEARCH.space.bind(kernel=suggest.ordinal(), act=suggest.category())
    assert (space["kernel"], space["act"]) == (Ordinal(Kernel), Category({"relu": relu, "round": round}))


def test_an_ordinal_in_the_place_of_a_number_is_another_space(tmp_path):
    options = {"storage": tmp_path / "s.journal", "study_name": "s", "resume": True, "progress": False}

    def number(x: Integer(0, 2)) -> float:
        return x

    def ordinal(x: Ordinal([16, 32, 64])) -> float:
        return x

    optimize(number, n_trials=2, **options).run_sync()
    with pytest.raises(InvalidOptionError, match=r"`x` is Ordinal\(.* now, but the trials .* have stored values"):
        optimize(ordinal, n_trials=4, **options).run_sync()
    optimize(ordinal, n_trials=2, **options | {"study_name": "t"}).run_sync()
    with pytest.raises(InvalidOptionError, match=r"`x` is Integer\(0, 2\) now, .* stored indices of the choices"):
        optimize(number, n_trials=4, **options | {"study_name": "t"}).run_sync()


def test_an_ordinal_of_objects_is_kept_by_names_only(tmp_path):
    def objective(x: Ordinal([relu, round])) -> float:
        return 0.0

    with pytest.raises(InvalidOptionError, match="Give the choices names"):
        optimize(objective, storage=tmp_path / "s.journal", study_name="s", progress=False).run_sync()


def test_a_sampler_knows_the_order_of_an_ordinal():
    assert Ordinal(["s", "m", "l"]).to_distribution() == optuna.distributions.IntDistribution(0, 2)
    assert suggest.ordinal is Ordinal
    assert Ordinal([1, 2]) != Category([1, 2])
    assert pickle.loads(pickle.dumps(Ordinal(Size))) == Ordinal(Size)


def test_members_of_an_enum_that_are_strings_have_names_too():
    assert Category(Text).to_distribution().choices == ("A", "B")
    assert repr(Category([Text.A])) == "Category([Text.A])"
    assert repr(Category(Text)) == "Category(Text)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ordinal([1]), "at least two values, but got \\[1\\]"),
        (
            lambda: Category({1: "a"}),
            "each name of a choice, a key of the dict, must be a str of 1 to 512 characters, but got 1",
        ),
        (lambda: Category({"": "a"}), "a key of the dict, must be a str"),
        (lambda: Category({}), "must hold at least one value"),
        (lambda: Category([]), "must hold at least one value"),
        (lambda: Category({"a": 1, "b": True}), "which are equal in Python"),
    ],
)
def test_wrong_choices_are_named(make, message):
    with pytest.raises((InvalidMarkerError, InvalidMarkerTypeError), match=message):
        make()


def test_a_suggestion_inside_a_choice_is_searched_in_trials_with_that_choice():
    @optimize(n_trials=20, seed=1)
    def fit(model: Category([{"kind": "svm", "C": Float(0, 1)}, {"kind": "rf"}])) -> float:
        return model.get("C", 2.0)

    study = fit.run_sync()
    assert all(("model.0.C" in trial.params) == (trial.params["model"] == 0) for trial in study.trials)
    assert all(trial.value == trial.params.get("model.0.C", 2.0) for trial in study.trials)
    assert {trial.value for trial in study.trials if trial.params["model"] == 1} == {2.0}


def test_duplicates_of_named_and_ordered_choices_are_found():
    study = SEARCH.with_options(n_trials=50, duplicates="resample", stop_when_exhausted=True).run_sync()
    points = {tuple(sorted(trial.params.items())) for trial in study.trials}
    assert len(study.trials) == len(points) == 12


def test_a_kept_study_goes_on_with_named_and_ordered_choices(tmp_path):
    options = {"storage": f"sqlite:///{tmp_path}/s.db", "study_name": "s", "resume": True}
    SEARCH.with_options(n_trials=3, **options).run_sync()
    study = SEARCH.with_options(n_trials=6, **options).run_sync()
    assert len(study.trials) == 6
    assert study.user_attrs["optuna_flyte_dsl:ordinals"] == {"width": ["16", "32", "64"]}

    def changed(kernel: Category(Kernel), act: Category({"relu": relu, "round": round}), width: Ordinal([8, 16, 32])):
        raise NotImplementedError

    with pytest.raises(InvalidOptionError, match=r"`width` is Ordinal\(\[8, 16, 32\]\) now.*have stored indices of"):
        optimize(changed, n_trials=9, **options).run_sync()
    assert len(SEARCH.with_options(n_trials=7, **options).run_sync().trials) == 7
