import collections
import copy
import dataclasses
import functools
import inspect
import random
import types
import typing
from typing import Annotated, Any, NamedTuple, Optional

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from optuna_flyte_dsl import (
    ArgumentError,
    Category,
    EmptySpaceError,
    Fixed,
    Float,
    Integer,
    InvalidAnnotationError,
    InvalidMarkerError,
    OutOfRangeError,
    SearchSpace,
    When,
    suggest,
)
from optuna_flyte_dsl.testing import strategies
from tests.support import spaces

OPTUNA = optuna.samplers.RandomSampler
sample = spaces.sample


def train(lr: Float(1e-5, 1e-1, log=True), depth: Integer(2, 12), booster: Category(["a", "b"]), dataset="wine"):
    raise NotImplementedError


SPACE = SearchSpace.of(train)


@given(spaces.signatures())
def test_a_space_has_just_the_marked_parameters(drawn):
    signature, marked, fixed = drawn
    space = SearchSpace.from_signature(signature)
    assert dict(space) == marked
    assert len(space) == len(marked)
    assert list(space) == [name for name in signature.parameters if name in marked]
    assert space.distributions() == {name: marked[name].to_distribution() for name in space}
    assert {name: value for name, value in space.arguments.items() if name not in marked} == fixed


@given(spaces.spaces, st.integers(0, 2**32 - 1))
def test_a_sampled_point_is_always_contained(space, seed):
    point = sample(space, seed)
    assert space.contains(point)
    assert space.bind(**point).contains(point)


@given(spaces.spaces, st.integers(0, 2**32 - 1))
def test_suggesting_is_asking_with_the_distributions(space, seed):
    trial = optuna.create_study(sampler=OPTUNA(seed=seed)).ask(fixed_distributions=space.distributions())
    point = space.suggest(trial)
    assert {name: marker.to_stored(point[name]) for name, marker in space.items()} == trial.params
    assert {name: marker.from_stored(trial.params[name]) for name, marker in space.items()} == {
        name: point[name] for name in space
    }
    assert space.point(point) == trial.params
    assert space.fill(trial.params) == point


nested = st.recursive(
    spaces.markers | spaces.plain_values,
    lambda inner: (
        st.dictionaries(spaces.names, inner, max_size=3) | st.lists(inner, max_size=3) | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


@given(nested, st.integers(0, 2**32 - 1))
def test_containers_are_filled_and_never_changed(value, seed):
    def objective(params: Any):
        raise NotImplementedError

    before = copy.deepcopy(value)
    space = SearchSpace.of(objective).bind(params=value)
    point = sample(space, seed)
    assert value == before
    assert space.contains(point)
    assert len(space) == _count(value)


def _count(value):
    if isinstance(value, dict):
        return sum(map(_count, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_count, value))
    return isinstance(value, Float | Integer | Category)


def test_names_inside_containers_are_joined_by_dots():
    def objective(params: dict):
        raise NotImplementedError

    space = SearchSpace.of(objective).bind(
        params={"lr": suggest.float(0, 1), "layers": [suggest.integer(1, 9), 5], "objective": "binary"}
    )
    assert dict(space) == {"params.lr": Float(0, 1), "params.layers.0": Integer(1, 9)}
    point = sample(space)
    assert point["params"].keys() == {"lr", "layers", "objective"}
    assert point["params"]["layers"][1] == 5


def test_a_named_tuple_keeps_its_class():
    class Shape(NamedTuple):
        width: Any
        height: Any

    def objective(shape: Any):
        raise NotImplementedError

    space = SearchSpace.of(objective).bind(shape=Shape(Integer(1, 3), 7))
    assert sample(space)["shape"] == Shape(sample(space)["shape"].width, 7)


def test_later_changes_to_a_callers_container_are_not_seen():
    def objective(params: dict):
        raise NotImplementedError

    params = {"x": Float(0, 1), "fixed": [1]}
    space = SearchSpace.of(objective).bind(params=params)
    params["fixed"].append(2)
    params["x"] = 3
    assert space.arguments["params"] == {"x": Float(0, 1), "fixed": [1]}
    drawn = sample(space)
    drawn["params"]["fixed"].append(3)
    assert sample(space)["params"]["fixed"] == [1]


@pytest.mark.parametrize("key", ["k" * 512, "a\0b", "\ud800"])
def test_a_name_that_a_database_cannot_keep_is_refused(key):
    def objective(params: dict):
        raise NotImplementedError

    space = SearchSpace.of(objective).bind(params={key: suggest.float(0, 1)})
    with pytest.raises(ArgumentError, match=r"the name of a parameter must have at most 512.*Rename a key"):
        list(space)


def test_two_suggestions_of_one_name_are_refused():
    def objective(params: dict):
        raise NotImplementedError

    space = SearchSpace.of(objective).bind(params={"a.b": Float(0, 1), "a": {"b": Float(0, 1)}})
    with pytest.raises(ArgumentError, match=r"two suggestions have the name `params.a.b`.*rename a key"):
        list(space)


def test_a_call_overrides_the_signature():
    space = SPACE.bind(lr=suggest.float(1, 2), depth=3)
    assert dict(space) == {"lr": Float(1, 2), "booster": Category(["a", "b"])}
    assert space.arguments["depth"] == 3
    assert SPACE.bind(0.01, 4).arguments["depth"] == 4
    assert dict(SPACE)["lr"] == Float(1e-5, 1e-1, log=True), "spaces are values: bind changed it"


def test_a_fixed_value_outside_its_marker_is_refused_unless_asked_for():
    with pytest.raises(OutOfRangeError) as caught:
        SPACE.bind(depth=30)
    assert str(caught.value) == (
        "`train`: `depth` must lie within its marker Integer(2, 12), but got 30. "
        "Give another value, or `depth=Fixed(30)` to pass it all the same."
    )
    assert SPACE.bind(depth=Fixed(30)).arguments["depth"] == 30
    for wrong in ({"lr": "0.1"}, {"lr": None}, {"depth": True}, {"depth": 2.5}, {"booster": "c"}):
        with pytest.raises(OutOfRangeError):
            SPACE.bind(**wrong)


def test_fixed_also_works_inside_a_container():
    def objective(params: dict):
        raise NotImplementedError

    assert sample(SearchSpace.of(objective).bind(params={"x": Fixed(3), "y": Float(0, 1)}))["params"]["x"] == 3


def test_values_get_the_type_of_their_parameter():
    def objective(x: Float(0, 10), n: Integer(0, 10), y: float, z: float = 1):
        raise NotImplementedError

    space = SearchSpace.of(objective).bind(x=1, n=3.0, y=suggest.integer(1, 3), z=2)
    point = sample(space)
    assert {name: type(value) for name, value in point.items()} == {"x": float, "n": int, "y": float, "z": float}
    assert space.contains(point)


def test_an_enqueued_int_becomes_the_float_it_stands_for():
    study = optuna.create_study()
    study.enqueue_trial({"x": 1, "p.y": 2})
    space = SearchSpace.from_signature(inspect.signature(lambda x, p: 0), {"x": Float(0, 3), "p": {"y": Float(0, 3)}})
    point = space.suggest(study.ask())
    assert repr(point) == "{'x': 1.0, 'p': {'y': 2.0}}"


def test_a_choice_is_passed_as_it_was_given():
    def objective(x: Category([1.5, 2])):
        raise NotImplementedError

    assert type(SearchSpace.of(objective).bind(x=2.0).arguments["x"]) is int


def test_unknown_missing_and_doubled_arguments_are_named():
    with pytest.raises(ArgumentError, match=r"`train` has no parameter `epochs`; it has `lr`, `depth`"):
        SPACE.bind(epochs=3)
    with pytest.raises(ArgumentError, match=r"it has .*\. Did you mean `depth`\? Correct the name"):
        SPACE.bind(Deph=3)
    with pytest.raises(ArgumentError, match=r"does not search `boost`.*Did you mean `booster`\? Correct the name"):
        SPACE.convert_point({"boost": "a"})
    with pytest.raises(OutOfRangeError, match=r"but got 'A'. Did you mean 'a'\? Give another value"):
        SPACE.bind(booster="A")
    with pytest.raises(ArgumentError, match=r"takes 4 arguments .* but 5 were given by position"):
        SPACE.bind(0.1, 2, "a", "b", "c")
    with pytest.raises(ArgumentError, match=r"`lr` was given twice"):
        SPACE.bind(0.1, lr=0.1)
    with pytest.raises(ArgumentError, match=r"`lr` got the class Float\. Call it"):
        SPACE.bind(lr=Float)

    def needy(x: Float(0, 1), data, more):
        raise NotImplementedError

    with pytest.raises(ArgumentError, match=r"`needy` needs a value for `data`, `more`\. Give a value at the call"):
        SearchSpace.of(needy).check_ready()


def test_nothing_to_search_is_an_error_with_its_cure():
    with pytest.raises(EmptySpaceError) as caught:
        SPACE.bind(lr=0.1, depth=3, booster="a").check_ready()
    assert str(caught.value) == (
        "`train` has nothing to search: the call fixes `lr`, `depth`, `booster`. Leave one of them to the search; for "
        "one plain run, call `train.task(...)`."
    )

    def plain(x: float = 0.0) -> float:
        return x

    with pytest.raises(EmptySpaceError) as caught:
        SearchSpace.of(plain).check_ready()
    assert str(caught.value) == (
        "`plain` has nothing to search: no parameter has a marker or a suggestion. Give one a marker, "
        "`x: Float(0, 1)`, or a suggestion, `x=suggest.float(0, 1)`; for one plain run, call `plain.task(...)`. A "
        "function without `@fl.task` may suggest its parameters by `trial`."
    )


@pytest.mark.parametrize(
    ("base", "cure"),
    [
        (int, "or a suggestion, `x=suggest.integer(0, 10)`"),
        (float, "or a suggestion, `x=suggest.float(0, 1)`"),
        (str, 'or a suggestion, `x=suggest.category(["a", "b"])`'),
        (bool, "or a suggestion, `x=suggest.category([True, False])`"),
        (dict, "needs a value for `x`. Give a value at the call."),
    ],
)
def test_the_cure_for_a_missing_value_is_a_suggestion_of_its_type(base, cure):
    def plain(x) -> float:
        return 0.0

    plain.__annotations__["x"] = base
    with pytest.raises(ArgumentError) as caught:
        SearchSpace.of(plain).check_ready()
    assert cure in str(caught.value)


def test_a_method_is_told_so():
    class Model:
        def fit(self, x: Float(0, 1)) -> float:
            return x

    with pytest.raises(ArgumentError, match=r"it is a method\. Decorate a function"):
        SearchSpace.of(Model.fit).check_ready()


def test_the_best_parameters_fill_the_arguments_of_a_plain_call():
    def nested(p: dict, x: Float(0, 1), y: Float(0, 1), name: str = "a") -> float:
        return x

    space = SearchSpace.of(nested).bind(p={"lr": Float(0, 1), "n": 3}, y=0.5)
    assert space.fill({"p.lr": 0.25, "x": 1}) == {"p": {"lr": 0.25, "n": 3}, "x": 1, "y": 0.5, "name": "a"}
    with pytest.raises(ArgumentError, match=r"the values lack `p.lr`"):
        space.fill({"x": 0.5})


@pytest.mark.parametrize(
    ("annotation", "marker"),
    [
        (Annotated[float, Float(0, 1)], Float(0, 1)),
        (Annotated[Annotated[float, "unit: m"], Float(0, 1), "more"], Float(0, 1)),
        (Annotated[Optional[int], Integer(0, 1)], Integer(0, 1)),
        (Optional[Float(0, 1)], Float(0, 1)),
        (Float(0, 1) | None, Float(0, 1)),
        (Annotated[int | float, Integer(0, 1)], Integer(0, 1)),
        (Annotated[Any, Float(0, 1)], Float(0, 1)),
        (Annotated[str, Category(["a"])], Category(["a"])),
        (Annotated[float, Category([1, 2.5])], Category([1, 2.5])),
        (float, None),
        (Optional[float], None),
        (dict[str, int], None),
        (typing.Callable[[int], float], None),
    ],
)
def test_a_marker_is_found_bare_annotated_and_optional(annotation, marker):
    parameter = inspect.Parameter("x", inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
    space = SearchSpace.from_signature(inspect.Signature([parameter]))
    assert dict(space) == ({} if marker is None else {"x": marker})


def test_none_may_be_given_where_the_annotation_takes_it():
    def objective(x: Optional[Float(0, 1)] = None, y: Float(0, 1) = 0.5):
        raise NotImplementedError

    space = SearchSpace.of(objective)
    assert dict(space.bind(x=None)) == {"y": Float(0, 1)}
    with pytest.raises(OutOfRangeError):
        space.bind(y=None)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (Float, r"is the class Float. Call it, with its bounds: `Float\(0, 1\)`"),
        (Annotated[float, Float], r"holds the class Float. Call it, with its bounds"),
        (Category, r"is the class Category. Call it, with its bounds: `Category\(\[\"a\", \"b\"\]\)`"),
        (Annotated[float, Float(0, 1), Float(0, 2)], r"holds 2 markers: `Float\(0, 1\)`, `Float\(0, 2\)`. Keep one."),
        (typing.Union[Float(0, 1), Integer(0, 1)], r"holds 2 markers"),
        (Annotated[int, Float(0, 1)], r"says int, but Float\(0, 1\) gives a float. Let the two agree."),
        (Annotated[float, Integer(0, 1)], r"says float, but Integer\(0, 1\) gives an int. Let the two agree."),
        (Annotated[str, Category(["a", 1])], r"says str, but Category\(\['a', 1\]\) holds 1. Let the two agree."),
        (list[Float(0, 1)], r"holds a marker inside <class 'list'>.*params="),
        (dict[str, Annotated[float, Float(0, 1)]], r"holds a marker inside"),
        (
            FloatDistribution(0, 1),
            r"is FloatDistribution\(.*, which is neither a marker nor a type. Write `Float\(0, 1\)`",
        ),
        (IntDistribution(1, 9, step=2), r"is .*neither a marker nor a type. Write `Integer\(1, 9, step=2\)`"),
        (IntDistribution(1, 1), r"is IntDistribution.*neither a marker nor a type"),
        (
            Annotated[str, CategoricalDistribution(["a"])],
            r"holds Categ.*, which is no marker. Write `Category\(\['a'\]\)`",
        ),
        ((0.0, 1), r"is \(0.0, 1\), which is neither a marker nor a type. Write `Float\(0.0, 1\)`"),
        ((1, 9), r"is .*neither a marker nor a type. Write `Integer\(1, 9\)`"),
        (range(2, 10), r"is .*neither a marker nor a type. Write `Integer\(2, 9\)`"),
        (["a", "b"], r"is .*neither a marker nor a type. Write `Category\(\['a', 'b'\]\)`"),
        (("a", "b"), r"is .*neither a marker nor a type. Write `Category\(\['a', 'b'\]\)`"),
    ],
)
def test_a_marker_without_meaning_is_refused(annotation, message):
    parameter = inspect.Parameter("x", inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
    with pytest.raises(InvalidAnnotationError, match=rf"`f`: the annotation of `x` {message}"):
        SearchSpace.from_signature(inspect.Signature([parameter]), name="f")


def test_a_default_outside_its_marker_is_refused():
    def objective(x: Float(0, 1) = 2.0):
        raise NotImplementedError

    with pytest.raises(InvalidMarkerError, match=r"the default of `x` must lie within its marker Float\(0, 1\)"):
        SearchSpace.of(objective)


def test_a_positional_only_parameter_is_refused():
    def objective(x: Float(0, 1), /):
        raise NotImplementedError

    with pytest.raises(InvalidAnnotationError, match=r"`x` is positional-only.*Drop the `/`"):
        SearchSpace.of(objective)


def test_a_function_with_keywords_takes_any_argument():
    def objective(x: Float(0, 1), *args, **rest):
        raise NotImplementedError

    space = SearchSpace.of(objective).bind(y=Integer(1, 3), z="z")
    assert dict(space) == {"x": Float(0, 1), "y": Integer(1, 3)}
    assert space.contains({"x": 0.5, "y": 2, "z": "z"})


def test_contains_looks_at_each_argument():
    point = {"lr": 0.01, "depth": 3, "booster": "a", "dataset": "wine"}
    assert SPACE.contains(point)
    for change in ({"lr": 1.0}, {"depth": 13}, {"depth": 2.5}, {"booster": "c"}, {"dataset": "digits"}, {"extra": 1}):
        assert not SPACE.contains({**point, **change})
    assert not SPACE.contains({"lr": 0.01})
    stepped = SearchSpace.from_signature(inspect.signature(lambda x: 0), {"x": Float(0, 1, step=0.25)})
    assert stepped.contains({"x": 0.75})
    assert not stepped.contains({"x": 0.8})


def test_a_suggestion_of_another_type_is_refused_at_the_call():
    def objective(n: Integer(1, 3), name: str, x: float = 1.0):
        raise NotImplementedError

    space = SearchSpace.of(objective)
    with pytest.raises(ArgumentError, match=r"`n` says int, but Float\(0.1, 0.9\) gives a float. Let the two agree."):
        space.bind(n=suggest.float(0.1, 0.9))
    with pytest.raises(ArgumentError, match=r"`name` says str, but Category\(\[1, 2\]\) holds 1. Let the two agree."):
        space.bind(name=suggest.category([1, 2]))
    assert space.bind(x=suggest.integer(1, 3), n=suggest.category([1, 5]))["x"] == Integer(1, 3)


def test_dicts_of_other_classes_are_filled_and_kept():
    def objective(params: Any):
        raise NotImplementedError

    ordered = collections.OrderedDict(a=Float(0, 1), b=2)
    default = collections.defaultdict(list, a=Float(0, 1))
    counter = collections.Counter(a=Float(0, 1), b=2)
    for value in (ordered, default, counter):
        point = sample(SearchSpace.of(objective).bind(params=value))["params"]
        assert type(point) is type(value)
        assert 0 <= point["a"] <= 1
        assert value["a"] == Float(0, 1)
        assert all(point[key] == item for key, item in value.items() if key != "a")


def test_a_suggestion_where_it_cannot_be_replaced_is_refused():
    @dataclasses.dataclass
    class Config:
        lr: Any

    def objective(params: Any):
        raise NotImplementedError

    class Several(list):
        pass

    class Pair(tuple):
        __slots__ = ()

    for value in (
        {Float(0, 1)},
        collections.deque([Float(0, 1)]),
        collections.UserDict(a=Float(0, 1)),
        collections.UserList([Float(0, 1)]),
        Several([1, Float(0, 1)]),
        Pair([1, Float(0, 1)]),
        types.MappingProxyType({"a": Float(0, 1)}),
        Config({Float(0, 1)}),
    ):
        with pytest.raises(ArgumentError, match=r"holds a suggestion inside a \w+, .* Put it into a dict"):
            SearchSpace.of(objective).bind(params=value)


def test_a_fixed_array_is_compared_by_identity():
    def objective(x: Float(0, 1), data: Any):
        raise NotImplementedError

    data = np.zeros(3)
    space = SearchSpace.of(objective).bind(data=data)
    assert space.contains({"x": 0.5, "data": data})
    assert not space.contains({"x": 0.5, "data": np.zeros(3)})


def test_points_are_converted_as_their_markers_say():
    assert repr(SPACE.convert_point({"depth": np.int64(3), "lr": 0.1})) == "{'depth': 3, 'lr': 0.1}"


@settings(deadline=None)
@given(strategies.spaces(), st.integers(0, 2**32 - 1))
def test_the_arguments_of_a_trial_are_the_initial_point_of_an_equal_trial(space, seed):
    study = optuna.create_study(sampler=OPTUNA(seed=seed))
    trial = study.ask()
    arguments = space.suggest(trial)
    assert space.convert_point(arguments) == trial.params
    study.enqueue_trial(space.convert_point(arguments))
    assert space.contains(space.suggest(repeated := study.ask()))
    assert repeated.params == trial.params


@dataclasses.dataclass
class Ridge:
    alpha: Float(0.1, 10)
    n_jobs: int = 1


@dataclasses.dataclass
class Boosting:
    depth: Integer(1, 9)
    lr: Annotated[float, Float(0.01, 1), When("depth", gt=3)] = 5.0


class TestPointsWithWholeArguments:
    def of_choice(model: Ridge | Boosting, folds: int = 3) -> float:
        raise NotImplementedError

    def of_class(config: Boosting, sizes: Integer(1, 9) * 2) -> float:
        raise NotImplementedError

    choice, of_class = SearchSpace.of(of_choice), SearchSpace.of(of_class)

    @pytest.mark.parametrize(
        ("point", "stored"),
        [
            ({"model": Ridge(2)}, {"model": "Ridge", "model.Ridge.alpha": 2.0}),
            (
                {"model": Boosting(4, 0.5), "folds": 3},
                {"model": "Boosting", "model.Boosting.depth": 4, "model.Boosting.lr": 0.5},
            ),
            ({"model": Boosting(2)}, {"model": "Boosting", "model.Boosting.depth": 2}),  # `lr` is not active
            ({"model": Ridge, "model.Ridge.alpha": 2}, {"model": "Ridge", "model.Ridge.alpha": 2.0}),
        ],
    )
    def test_an_object_of_one_of_several_classes(self, point, stored):
        assert self.choice.convert_point(point) == stored

    @pytest.mark.parametrize(
        ("point", "stored"),
        [
            ({"config": Boosting(4, 0.5)}, {"config.depth": 4, "config.lr": 0.5}),
            ({"config": {"depth": 4}}, {"config.depth": 4}),
            ({"config": {"lr": 0.5}}, {"config.lr": 0.5}),  # `depth` is sampled
            ({"config": {}}, {}),
            ({"config.depth": 4, "sizes": [1, 2]}, {"config.depth": 4, "sizes.0": 1, "sizes.1": 2}),
        ],
    )
    def test_an_object_or_some_fields_of_a_class(self, point, stored):
        assert self.of_class.convert_point(point) == stored

    @pytest.mark.parametrize(
        ("point", "message"),
        [
            ({"model": Ridge(99)}, r"`model` of an initial .*, one of `Ridge`, `Boosting`, but .*`model.Ridge.alpha`"),
            ({"model": Ridge(1, n_jobs=2)}, "`model` of an initial point must be an argument that a trial can get"),
            ({"model": {"Ridge": {"alpha": 1}}}, r"but got \{'Ridge': \{'alpha': 1\}\}. Give another one"),
            ({"model": "Rigde"}, r"must lie within Category\(\['Ridge', 'Boosting'\]\), .*Did you mean 'Ridge'"),
            ({"model": Boosting(2, lr=0.5)}, "`model.Boosting.lr` .* got 0.5, but is searched only in trials with"),
        ],
    )
    def test_what_no_trial_gets_for_a_choice_is_refused(self, point, message):
        with pytest.raises(OutOfRangeError, match=message):
            self.choice.convert_point(point)

    @pytest.mark.parametrize(
        ("point", "message"),
        [
            ({"config": {"depth": 99}}, r"`config.depth` of an initial point must lie within Integer\(1, 9\)"),
            ({"config": {"deth": 4}}, r"`config` of an initial .*\{'deth': 4\}.* paths: `config.depth`, `config.lr`"),
            ({"config": 4}, "`config` of an initial point must be an argument"),
            ({"config": Boosting(2, lr=0.5)}, "`config.lr` .* is searched only in trials with config.depth > 3"),
            ({"sizes": [1, 2, 3]}, r"`sizes` of an initial point .*`sizes.0`, `sizes.1`"),
            ({"sizes": [1, 20]}, "`sizes.1` of an initial point must lie within"),
        ],
    )
    def test_what_no_trial_gets_for_a_class_or_a_list_is_refused(self, point, message):
        with pytest.raises(OutOfRangeError, match=message):
            self.of_class.convert_point(point)

    @pytest.mark.parametrize("config", [4, {"deth": 4}])
    @pytest.mark.parametrize("use", [{}, {"use": True}])
    def test_what_no_trial_gets_is_refused_under_a_condition_too(self, use, config):
        def objective(
            use: Category([True, False]),
            config: Annotated[Boosting, When("use", True)] = Boosting(1),  # noqa: B008
        ):
            raise NotImplementedError

        space = SearchSpace.of(objective)
        assert space.convert_point({**use, "config": Boosting(4, 0.5)}) == {**use, "config.depth": 4, "config.lr": 0.5}
        with pytest.raises(OutOfRangeError, match=r"`config` of an initial point must be an argument .*`config.depth`"):
            space.convert_point({**use, "config": config})

    def test_another_value_of_what_is_not_searched_is_refused(self):
        with pytest.raises(ArgumentError, match="does not search `folds`, named in an initial point"):
            self.choice.convert_point({"folds": 4})


def test_the_cure_of_a_value_outside_its_marker_is_python():
    for name, value, cure in (
        ("model.Ridge.alpha", 99.0, r"`\*\*\{'model.Ridge.alpha': Fixed\(99.0\)\}` to pass it all the same"),
        ("model.Boosting.depth", range(3), r"a suggestion, `\*\*\{'model.Boosting.depth': suggest.integer\(0, 10\)\}`"),
    ):
        with pytest.raises(OutOfRangeError, match=cure):
            TestPointsWithWholeArguments.choice.bind(**{name: value})
    with pytest.raises(OutOfRangeError, match=r"got FloatDistribution.*a suggestion, `lr=suggest.float\(0, 1\)`"):
        SPACE.bind(lr=FloatDistribution(0, 1))


def test_points_are_checked_by_name():
    SPACE.convert_point({"lr": 0.01})
    with pytest.raises(ArgumentError, match=r"does not search `epochs`.*it searches `lr`, `depth`, `booster`"):
        SPACE.convert_point({"epochs": 3})
    with pytest.raises(OutOfRangeError, match=r"`depth` of an initial point must lie within Integer\(2, 12\)"):
        SPACE.convert_point({"depth": 99})


def test_spaces_compare_and_show_themselves():
    assert SearchSpace.of(train) == SPACE
    assert SPACE.bind(depth=3) != SPACE
    assert dict(SPACE) != SPACE
    assert repr(SPACE.bind(depth=3, lr=0.1, booster="a")) == (
        "SearchSpace(lr=0.1, depth=3, booster='a', dataset='wine')"
    )
    assert SearchSpace.of(SPACE) is SPACE


def test_a_seeded_space_repeats_whatever_the_order_of_the_call():
    random.seed(1)
    one = SPACE.bind(depth=suggest.integer(1, 5), lr=suggest.float(0, 1))
    other = SPACE.bind(lr=suggest.float(0, 1), depth=suggest.integer(1, 5))
    assert sample(one, 3) == sample(other, 3)


def test_a_partial_function_has_a_space():
    space = SearchSpace.of(functools.partial(train, dataset="digits"))
    assert list(space) == ["lr", "depth", "booster"]
    assert space.arguments["dataset"] == "digits"
