"""Conditions: parameters that are active only where others have certain values."""

import dataclasses
import enum
import inspect
import itertools
from fractions import Fraction
from typing import Annotated, Optional

import flytekit as fl
import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optuna_flyte_dsl import (
    ArgumentError,
    Category,
    Fixed,
    Float,
    Integer,
    InvalidAnnotationError,
    InvalidMarkerError,
    InvalidMarkerTypeError,
    Ordinal,
    OutOfRangeError,
    SearchSpace,
    When,
    optimize,
    suggest,
)
from optuna_flyte_dsl.testing import strategies


class Kernel(enum.Enum):
    LINEAR = "linear"
    RBF = "rbf"
    POLY = "poly"


def svm(
    kernel: Category(Kernel),
    gamma: Annotated[float, Float(1e-3, 1, log=True), When("kernel", "RBF", Kernel.POLY)] = 0.0,
    degree: Annotated[int, Integer(2, 5), When("kernel", Kernel.POLY)] = 1,
    coef: Annotated[Optional[float], Float(0, 1), When("degree", ge=3, lt=5) & ~When("gamma", gt=0.5)] = None,
) -> float:
    raise NotImplementedError


SPACE = SearchSpace.of(svm)


def sample(space: SearchSpace, seed: int = 0):
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    return space.suggest(trial), trial.params


@pytest.mark.parametrize("seed", range(30))
def test_inactive_parameters_are_not_suggested_and_have_their_defaults(seed):
    point, params = sample(SPACE, seed)
    kernel = point["kernel"]
    active = {"kernel": True, "gamma": kernel is not Kernel.LINEAR, "degree": kernel is Kernel.POLY}
    active["coef"] = active["degree"] and 3 <= point["degree"] < 5 and point["gamma"] <= 0.5
    assert params.keys() == {name for name, is_active in active.items() if is_active}
    defaults = {"gamma": 0.0, "degree": 1, "coef": None}
    assert all(point[name] == defaults[name] for name, is_active in active.items() if not is_active)
    assert SPACE.contains(point)
    assert SPACE.point(point) == params
    assert SPACE.fill(params) == point
    assert SPACE.active_in(params) == params.keys()


def test_a_point_with_a_value_for_an_inactive_parameter_is_not_contained():
    point = {"kernel": Kernel.LINEAR, "gamma": 0.0, "degree": 1, "coef": None}
    assert SPACE.contains(point)
    assert not SPACE.contains({**point, "gamma": 0.5})
    assert not SPACE.contains({**point, "degree": 2})
    assert not SPACE.contains({**point, "kernel": Kernel.RBF})
    assert SPACE.contains({**point, "kernel": Kernel.RBF, "gamma": 0.5})


def test_a_condition_looks_at_what_a_call_has_fixed():
    assert list(SPACE.bind(kernel="LINEAR")) == []
    assert list(SPACE.bind(kernel="RBF")) == ["gamma"]
    assert list(SPACE.bind(gamma=0.9)) == ["kernel", "degree"]
    assert list(SPACE.bind(kernel=suggest.category([Kernel.RBF, Kernel.LINEAR]))) == ["kernel", "gamma"]
    fixed = SPACE.bind(gamma=0.3)
    assert fixed.contains({"kernel": Kernel.LINEAR, "gamma": 0.3, "degree": 1, "coef": None})
    assert "coef" in fixed


def test_the_names_in_a_condition_are_looked_for_in_the_class_first_and_then_further_out():
    @dataclasses.dataclass
    class Inner:
        a: Annotated[int, Integer(0, 3), When("flag", True)] = 9
        b: Annotated[int, Integer(0, 3), When("kind", "x")] = 9
        kind: Annotated[str, Category(["x", "y"])] = "x"

    def objective(flag: Category([True, False]), kind: Category(["z"]), inner: Inner):
        raise NotImplementedError

    assert SearchSpace.of(objective).conditions == {
        "inner.a": When("flag", True),
        "inner.b": When("inner.kind", "x"),
    }


def test_a_whole_class_can_be_conditional():
    @dataclasses.dataclass
    class Decay:
        rate: Annotated[float, Float(0, 1)]
        step: Annotated[int, Integer(1, 9), When("rate", gt=0.5)] = 0

    def objective(
        n_epochs: Integer(1, 9),
        use: Annotated[str, Category(["none", "decay"]), When("n_epochs", ge=5)] = "none",
        decay: Annotated[Optional[Decay], When("use", "decay")] = None,
    ):
        raise NotImplementedError

    space = SearchSpace.of(objective)
    assert space.conditions["decay.step"] == When("use", "decay") & When("decay.rate", gt=0.5)
    for seed in range(30):
        point, params = sample(space, seed)
        assert (point["decay"] is None) == (params.get("use") != "decay")
        assert space.contains(point)
        assert space.point(point) == params


def test_a_list_is_as_long_as_a_parameter_says():
    def objective(n_layers: Integer(0, 3), widths: Annotated[list[int], Ordinal([16, 32, 64]) * "n_layers"]):
        raise NotImplementedError

    space = SearchSpace.of(objective)
    assert space.conditions["widths.2"] == When("n_layers", gt=2)
    for seed in range(20):
        point, params = sample(space, seed)
        assert len(point["widths"]) == point["n_layers"] == len(params) - 1
        assert space.contains(point)
        assert not space.contains({**point, "widths": [*point["widths"], 16]})
    assert list(space.bind(n_layers=2)) == ["widths.0", "widths.1"]
    assert sample(space.bind(widths=[16, 32], n_layers=2))[0]["widths"] == [16, 32]
    for arguments in ({"widths": [16, 32]}, {"widths": [16, 32], "n_layers": 3}, {"widths": Ordinal([1, 2]) * 2}):
        with pytest.raises(ArgumentError, match=r"the length of `widths` must be .*, or `n_layers` too"):
            space.bind(**arguments)


def test_a_list_of_a_fixed_length_has_a_parameter_for_each_item():
    def objective(matrix: Float(0, 1) * 2 * 3):
        raise NotImplementedError

    space = SearchSpace.of(objective)
    assert list(space) == [f"matrix.{row}.{column}" for row in range(3) for column in range(2)]
    assert [len(row) for row in sample(space)[0]["matrix"]] == [2, 2, 2]
    mixed = space.bind(matrix=[[0.5, 0.5], [suggest.float(0, 1), 0.1], [0.2, 0.2]])
    assert list(mixed) == ["matrix.1.0"]


@given(st.data())
def test_a_condition_holds_as_python_reads_it(data):
    values = {"a": data.draw(st.integers(0, 3)), "b": data.draw(st.integers(0, 3))}
    atoms = st.builds(When, st.sampled_from("ab"), st.integers(0, 3)) | st.builds(
        lambda name, low, high: When(name, ge=low, lt=high), st.sampled_from("ab"), st.integers(0, 3), st.integers(0, 3)
    )
    conditions = st.recursive(
        atoms,
        lambda inner: (
            inner.map(lambda c: ~c)
            | st.tuples(inner, inner).map(lambda p: p[0] & p[1])
            | st.tuples(inner, inner).map(lambda p: p[0] | p[1])
        ),
        max_leaves=6,
    )
    condition = data.draw(conditions)

    def truth(each):
        match each:
            case When(parameter=name, values=()):
                return each.ge <= values[name] < each.lt
            case When(parameter=name, values=wanted):
                return values[name] in wanted
        parts = [truth(part) for part in getattr(each, "parts", ())]
        return {"AllOf": all(parts), "AnyOf": any(parts)}.get(
            type(each).__name__, not parts and not truth(each.part) if hasattr(each, "part") else None
        )

    assert condition.holds(values) == truth(condition)
    assert eval(repr(condition), {"When": When}).holds(values) == condition.holds(values)
    assert condition.holds({}) is None
    assert condition.names <= {"a", "b"}
    # A parameter with the condition is refused just if no values of the others make it true.
    can_hold = any(condition.holds({"a": a, "b": b}) for a, b in itertools.product(range(4), repeat=2))

    def objective(a: Integer(0, 3), b: Integer(0, 3), x: Annotated[float, Float(0, 1), condition] = 0.0):
        raise NotImplementedError

    if can_hold:
        space = SearchSpace.of(objective)
        drawn = data.draw(strategies.params(space))
        assert space.contains(drawn)
    else:
        with pytest.raises(InvalidAnnotationError, match="`x` is never active, because no trial has"):
            SearchSpace.of(objective)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (When("kernal", "rbf"), r"names `kernal`, which is no parameter; the others are .* Did you mean `kernel`\?"),
        (When("kernel", "rfb"), r"compares `kernel` with 'rfb', which is none of its choices .* Did you mean `rbf`\?"),
        (When("kernel", ["linear", "rbf"]), r"Write `?When\('kernel', 'linear', 'rbf'\)"),
        (When("depth", gt=9), "`x` is never active, because no trial has depth > 9"),
        (When("depth", 3) & When("depth", 4), "is never active"),
        (When("rate", gt=0.5, lt=0.5), "is never active"),
        (When("kernel", ge=3), "is never active"),
        (When("x", gt=0.5), "the condition of `x` compares `x` with itself"),
        (When("config", 3), "names `config`, which is a whole Config. Name one of its fields, as in `config.lr`"),
        (When, "holds the class When. Call it"),
    ],
)
def test_a_condition_without_meaning_is_refused_at_decoration(condition, message):
    @dataclasses.dataclass
    class Config:
        lr: Annotated[float, Float(0, 1)]

    def objective(
        kernel: Category(["linear", "rbf"]),
        depth: Integer(1, 9),
        rate: Float(0, 1),
        config: Config,
        x: Annotated[float, Float(0, 1), condition] = 0.0,
    ) -> float:
        raise NotImplementedError

    with pytest.raises(InvalidAnnotationError, match=message):
        optimize(objective)


def test_conditions_in_a_cycle_are_refused_at_decoration():
    def objective(
        a: Annotated[int, Integer(0, 3), When("c", 1)] = 0,
        b: Annotated[int, Integer(0, 3), When("a", 1)] = 0,
        c: Annotated[int, Integer(0, 3), When("b", 1)] = 0,
    ) -> float:
        raise NotImplementedError

    with pytest.raises(InvalidAnnotationError, match=r"go in a cycle: `a` -> `c` -> `b` -> `a`"):
        optimize(objective)


def test_a_condition_without_a_marker_is_refused():
    def objective(x: Float(0, 1), y: Annotated[float, When("x", gt=0.5)] = 0.0):
        raise NotImplementedError

    with pytest.raises(InvalidAnnotationError, match=r"holds the condition .*, but no marker that it belongs to"):
        SearchSpace.of(objective)


def test_a_task_needs_a_value_for_an_inactive_parameter():
    @fl.task
    def objective(kernel: Category(["a", "b"]), x: Annotated[float, Float(0, 1), When("kernel", "a")]) -> float:
        return x

    with pytest.raises(InvalidAnnotationError, match=r"`x` gets its default where kernel is 'a' is not true"):
        optimize(objective)

    @fl.task
    def other(kernel: Category(["a", "b"]), x: Annotated[float, Float(0, 1), When("kernel", "a")] = None) -> float:  # noqa: RUF013
        return x

    with pytest.raises(InvalidAnnotationError, match=r"has the default None, which is not of its type"):
        optimize(other)


def test_the_length_of_a_list_must_be_a_number():
    def objective(n: Category(["a"]), xs: Annotated[list[float], Float(0, 1) * "n"]):
        raise NotImplementedError

    with pytest.raises(InvalidAnnotationError, match=r"`n` is the length of the list `xs`, so it must be an Integer"):
        SearchSpace.of(objective)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: When("a"), InvalidMarkerError, "but got neither"),
        (lambda: When("a", 1, ge=3), InvalidMarkerError, "but got both"),
        (lambda: When(3, 1), InvalidMarkerTypeError, "`parameter` must be the name of a parameter, but got 3"),
        (lambda: When("a", ge="3"), InvalidMarkerTypeError, "`ge` must be a number, but got '3'"),
        (lambda: When("a", Float(0, 1)), InvalidMarkerTypeError, "For a range, write bounds"),
        (lambda: When("a", above=3), InvalidMarkerTypeError, "When: .* unexpected keyword argument 'above'"),
        (lambda: When(kernel="rbf"), InvalidMarkerTypeError, r"""Write it as in `When\("kernel", "rbf"\)`"""),
        (lambda: When("a", 1) and When("b", 1), InvalidMarkerTypeError, "Combine conditions by `&`"),
        (lambda: When("a", 1) & 3, InvalidMarkerTypeError, "`&` combines two conditions, but got 3"),
        (lambda: Float(0, 1) * 0, InvalidMarkerError, "at least once, but got 0"),
        (lambda: Float(0, 1) * 2.0, InvalidMarkerTypeError, r"Write `Float\(0, 1\) \* 3`"),
    ],
)
def test_a_wrong_condition_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_conditions_are_shown_in_words():
    assert str(SPACE) == (
        "svm: 4 parameters, infinitely many points\n"
        "├── kernel: Category(Kernel)\n"
        "├── gamma: Float(0.001, 1, log=True) when kernel is Kernel.RBF or Kernel.POLY, else 0.0\n"
        "├── degree: Integer(2, 5) when kernel is Kernel.POLY, else 1\n"
        "└── coef: Float(0, 1) when (degree >= 3 and < 5) and not (gamma > 0.5), else None"
    ).replace("(degree >= 3 and < 5)", "degree >= 3 and < 5")


def finite(
    kernel: Category(["a", "b"]),
    degree: Annotated[int, Integer(1, 3), When("kernel", "b")] = 0,
    flag: Annotated[bool, Category(), When("degree", ge=2)] = False,
    n: Integer(0, 2) = 0,
    widths: Annotated[list[int], Integer(1, 2) * "n"] = [],  # noqa: B006
) -> float:
    return 0.0


def test_the_points_of_a_space_with_conditions_are_counted_and_found():
    space = SearchSpace.of(finite)
    # (a; or b with degree 1; or b with degree 2 or 3, and two flags) times (no width, two, or four)
    assert space.n_points == (1 + 1 + 2 * 2) * (1 + 2 + 4)
    points = [space.fill(space.counter.point(index)) for index in range(int(space.n_points))]
    assert all(map(space.contains, points))
    assert len({repr(point) for point in points}) == space.n_points


@pytest.mark.newest
def test_a_search_of_a_space_with_conditions_ends_when_its_points_are_exhausted():
    study = optimize(finite, n_trials=200, seed=0, stop_when_exhausted=True, duplicates="resample").run_sync()
    assert len(study.trials) == 42
    assert len({tuple(sorted(trial.params.items())) for trial in study.trials}) == 42
    reused = optimize(finite, n_trials=40, seed=0, duplicates="reuse").run_sync()
    n_reused = sum("optuna_flyte_dsl:same_as" in trial.user_attrs for trial in reused.trials)
    assert 0 < n_reused == 40 - len({tuple(sorted(trial.params.items())) for trial in reused.trials})


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_sampler_sees_groups():
    sampler = optuna.samplers.TPESampler(multivariate=True, group=True, n_startup_trials=5, seed=0)
    study = optimize(svm_of_value, n_trials=30, sampler=sampler).run_sync()
    assert all(trial.state.name == "COMPLETE" for trial in study.trials)


def svm_of_value(
    kernel: Category(["linear", "rbf"]), gamma: Annotated[float, Float(0, 1), When("kernel", "rbf")] = 0.5
) -> float:
    return gamma


LENGTH_N, LENGTH_M = Integer(1, 2) * "n", Integer(1, 2) * "m"


def test_the_length_of_a_list_may_be_a_plain_argument():
    def objective(x: Float(0, 1), n: int, m: int = 1, xs: LENGTH_N = [], ys: LENGTH_M = []):  # noqa: B006
        raise NotImplementedError

    space = SearchSpace.of(objective)
    assert list(space.bind(n=2)) == ["x", "xs.0", "xs.1", "ys.0"]
    assert list(space.bind(n=Fixed(0), m=0)) == ["x"]


def test_a_condition_may_look_at_a_flag_that_is_not_searched():
    def objective(q: Float(0, 1), augment: bool = False, p: Annotated[float, Float(0, 1), When("augment", True)] = 0.0):
        raise NotImplementedError

    space = SearchSpace.of(objective)
    assert list(space) == ["q"]
    assert list(space.bind(augment=True)) == ["q", "p"]


def test_conditions_with_like_values_of_different_types_differ():
    assert When("a", 1) != When("a", True)
    assert When("a", 1) == When("a", 1)
    assert len({When("a", 1), When("a", True), When("a", 1.0), When("a", 1)}) == 3


def test_scalars_of_numpy_are_bounds():
    def objective(d: Integer(1, 9), x: Annotated[float, Float(0, 1), When("d", gt=np.int64(3), lt=Fraction(5))] = 0.0):
        raise NotImplementedError

    assert "d > 3 and < 5" in str(SearchSpace.of(objective))


BRANCHES = Category({"a": {"k": Float(0, 1)}, "b": {"j": 3}})


def branching(q: Float(0, 1), c: BRANCHES, z: Annotated[float, Float(0, 1), When("c", "a")] = 9.0):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("a", ["q", "c.a.k", "z"]),
        ("b", ["q"]),
        ({"k": 0.5}, ["q", "z"]),
        ({"k": suggest.float(0, 0.1)}, ["q", "c.a.k", "z"]),
        ({"j": 3}, ["q"]),
        (suggest.category({"a": {"k": 0.5}, "b": {"j": 3}}), ["q", "c", "z"]),
    ],
)
def test_a_condition_knows_which_choice_a_call_has_given(given, left):
    space = SearchSpace.of(branching).bind(c=given)
    assert list(space) == left
    for seed in range(5):
        point, params = sample(space, seed)
        assert space.contains(point)
        assert space.point(point) == params


def test_a_choice_that_is_none_of_the_declared_ones_is_refused():
    with pytest.raises(OutOfRangeError, match="`c` must lie within its marker"):
        SearchSpace.of(branching).bind(c={"k": 5.0})

    def task(c: BRANCHES) -> float:
        return 0.0

    space = optimize(fl.task(task)).space
    assert list(space.bind(c="a")) == ["c.a.k"]
    with pytest.raises(ArgumentError, match="a task's choices hold the suggestions of its signature"):
        space.bind(c={"k": suggest.float(0, 0.1)})


def test_the_choice_with_the_types_of_a_value_is_preferred():
    def objective(c: Category({"s": {"x": Float(0, 1)}, "f": {"x": Integer(0, 1)}})):
        raise NotImplementedError

    space = SearchSpace.of(objective)
    assert space.point({"c": {"x": 1}}) == {"c": "f", "c.f.x": 1}
    assert space.point({"c": {"x": 1.0}}) == {"c": "s", "c.s.x": 1.0}
    with pytest.raises(ArgumentError, match=r"`c` must be one of \['s', 'f'\], but got 'x'"):
        space.fill({"c": "x"})


def test_many_conditions_are_looked_at_quickly():
    """Each condition is looked at as far as it decides, so that deep nesting needs no combination of all choices."""
    parameters = {"p0": Category(["a", "b", "c"])}
    for index in range(1, 30):
        parameters[f"p{index}"] = Annotated[str, Category(["a", "b", "c"]), When(f"p{index - 1}", "c")]
    signature = inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=each, default="a")
            for name, each in parameters.items()
        ]
    )
    space = SearchSpace.from_signature(signature)
    assert len(space) == 30
    assert space.n_points == 2 * 29 + 3


def test_a_fixed_value_that_only_inactive_parameters_compare_is_no_point():
    def train(
        a: Category(["x", "y"]),
        b: Integer(0, 9),
        c: Annotated[int, Integer(0, 9), When("a", "x") & When("b", 3)] = 0,
    ): ...

    space = SearchSpace.of(train).bind(a="y", b=3)
    assert space.n_points == 1
    assert SearchSpace.of(train).bind(b=3).n_points == 10 + 1
