"""Parameters whose type is a class with searched fields, and choices between such classes."""

import dataclasses
import gc
import inspect
import weakref
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Optional, TypedDict

import optuna
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    UnresolvedAnnotationError,
    When,
    optimize,
    suggest,
)
from optuna_flyte_dsl.testing import strategies
from tests.support import spaces

sample = spaces.sample


@dataclasses.dataclass(frozen=True)
class Schedule:
    warmup: Annotated[int, Integer(0, 100)]
    decay: Annotated[float, Float(0.1, 0.9)] = 0.5


@dataclasses.dataclass
class Base:
    lr: Annotated[float, Float(1e-5, 1e-1, log=True)]


@dataclasses.dataclass
class Config(Base):
    schedule: Schedule
    booster: Annotated[Literal["gbtree", "dart"], Category()] = "gbtree"
    depth: Integer(1, 9) = 3
    seed: int = 7
    notes: list[str] = dataclasses.field(default_factory=list)
    made: int = dataclasses.field(init=False, default=1)


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)

    lr: Annotated[float, Float()] = pydantic.Field(ge=0, le=1)
    depth: Annotated[int, pydantic.Field(ge=1, le=3), Integer()] = 2
    name: str = pydantic.Field("m", alias="modelName")
    notes: list[str] = pydantic.Field(default_factory=list)


class Shape(NamedTuple):
    width: Annotated[int, Integer(1, 3)]
    height: Annotated[int, Integer(1, 3)] = 2
    unit: str = "m"


class Options(TypedDict):
    lr: Annotated[float, Float(0, 1)]
    seed: NotRequired[int]


def train(config: Config, seed: int = 0) -> float:
    return config.lr


SPACE = SearchSpace.of(train)
NAMES = ["config.lr", "config.schedule.warmup", "config.schedule.decay", "config.booster", "config.depth"]


def test_the_fields_of_a_dataclass_are_searched_by_their_paths():
    assert list(SPACE) == NAMES
    assert SPACE["config.booster"] == Category(["gbtree", "dart"])
    config = sample(SPACE)["config"]
    assert type(config) is Config
    assert type(config.schedule) is Schedule
    assert (config.seed, config.notes, config.made) == (7, [], 1)
    assert sample(SPACE)["config"].notes is not config.notes


@pytest.mark.parametrize("kind", [Config, Model, Shape, Options])
def test_each_kind_of_class_is_made_of_its_fields(kind):
    def objective(config: kind):
        raise NotImplementedError

    space = SearchSpace.of(objective)

    @given(strategies.params(objective), st.integers(0, 99))
    def check(drawn, seed):
        assert type(drawn["config"]) is (dict if kind is Options else kind)
        for point in (drawn, sample(space, seed)):
            assert space.contains(point)
            assert space.fill(space.point(point)) == point

    check()
    trial = optuna.create_study().ask()
    point = space.suggest(trial)
    assert space.point(point) == trial.params == dict(trial.params)


def test_bounds_of_pydantic_are_those_of_the_field():
    def objective(config: Model):
        raise NotImplementedError

    assert dict(SearchSpace.of(objective)) == {"config.lr": Float(0, 1), "config.depth": Integer(1, 3)}
    assert sample(SearchSpace.of(objective).bind(config={"name": "n"}))["config"].name == "n"


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ({"config.lr": 0.01}, NAMES[1:]),
        ({"config": {"lr": 0.01, "schedule": {"warmup": 3}}}, NAMES[2:]),
        ({"config.schedule": Schedule(3, 0.2)}, [NAMES[0], *NAMES[3:]]),
        ({"config": Config(0.1, Schedule(3, suggest.float(0.2, 0.3)), depth=suggest.integer(1, 2))}, NAMES[2::2]),
        ({"config": {"lr": 0.01}, "config.depth": 3}, NAMES[1:4]),
        ({"config.depth": Fixed(30)}, NAMES[:4]),
    ],
)
def test_fields_are_fixed_and_overridden_by_objects_dicts_and_paths(arguments, left):
    space = SPACE.bind(**arguments)
    assert list(space) == left
    point = sample(space)
    assert type(point["config"]) is Config
    assert space.contains(point)


def test_later_calls_add_to_the_fields_that_earlier_calls_have_given():
    space = SPACE.bind(config={"lr": 0.01}).bind(config={"depth": 3})
    assert list(space) == NAMES[1:4]
    whole = Config(0.1, Schedule(3), depth=2)
    assert not space.bind(config=whole)
    assert sample(space.bind(config=whole))["config"] == whole
    assert list(space.bind(config=whole).bind(config={"lr": suggest.float(0, 1)})) == ["config.lr"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"config.lrr": 0.1}, ArgumentError, r"has no parameter `config.lrr`.* Did you mean `config.lr`\?"),
        ({"config": {"lrr": 0.1}}, ArgumentError, r"a Config, which has no field `lrr`.* Did you mean `lr`\?"),
        ({"config": 3}, ArgumentError, r"`config` must be a Config, but got 3.*\*\*\{'config.lr': ...\}"),
        ({"config": {"lr": 5.0}}, OutOfRangeError, r"`config.lr` must lie within its marker"),
        ({"config": Config(5.0, Schedule(3))}, OutOfRangeError, r"`config.lr` must lie within its marker"),
        ({"config": Fixed(3), "config.lr": 0.1}, ArgumentError, r"`config.lr` is given, but so is `config` as a whole"),
        ({"seed.x": 3}, ArgumentError, "has no parameter `seed.x`"),
    ],
)
def test_a_wrong_field_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        SPACE.bind(**arguments)


def test_a_class_whose_fields_are_all_given_leaves_nothing_to_search():
    with pytest.raises(EmptySpaceError, match="the call fixes `config`"):
        SPACE.bind(config=Config(0.1, Schedule(3))).check_ready()


def test_a_missing_field_is_named_and_may_be_none():
    @dataclasses.dataclass
    class Data:
        path: str
        lr: Annotated[float, Float(0, 1)]

    def objective(data: Optional[Data]):
        raise NotImplementedError

    space = SearchSpace.of(objective)
    assert space.missing == ("data.path",)
    with pytest.raises(ArgumentError, match=r"needs a value for `data.path`"):
        space.check_ready()
    assert sample(space.bind(data={"path": "x"}))["data"].path == "x"
    assert space.bind(data=None).arguments == {"data": None}


def test_an_object_of_a_subclass_is_passed_on_as_it_is():
    @dataclasses.dataclass
    class Special(Config):
        extra: int = 3

    special = Special(0.1, Schedule(3))
    assert SPACE.bind(config=special).arguments["config"] is special


def test_an_object_with_suggestions_needs_no_marked_class():
    def objective(config: Any):
        raise NotImplementedError

    space = SearchSpace.of(objective).bind(config=[Config(suggest.float(0, 1), Schedule(3))])
    assert dict(space) == {"config.0.lr": Float(0, 1)}
    assert sample(space)["config"][0].schedule == Schedule(3)


def test_a_class_that_refuses_its_values_fails_the_trial_with_its_reason():
    @dataclasses.dataclass
    class Pair:
        low: Annotated[int, Integer(0, 9)]
        high: Annotated[int, Integer(0, 9)]

        def __post_init__(self):
            if self.low > self.high:
                raise ValueError("low is above high")

    @optimize(n_trials=30, seed=1, max_consecutive_failures=None)
    def objective(pair: Pair) -> float:
        return float(pair.low <= pair.high)

    study = objective.run_sync()
    for trial in study.trials:
        is_refused = trial.params["pair.low"] > trial.params["pair.high"]
        assert trial.state.name == ("FAIL" if is_refused else "COMPLETE")
        assert is_refused == ("low is above high" in trial.user_attrs.get("optuna_flyte_dsl:error", ""))
    assert {trial.state.name for trial in study.trials} == {"FAIL", "COMPLETE"}


def test_a_class_inside_itself_and_a_class_without_markers_are_not_searched():
    def objective(x: Float(0, 1), plain: "Plain", tree: "Tree"):
        raise NotImplementedError

    assert list(SearchSpace.of(objective)) == ["x", "tree.value"]


@dataclasses.dataclass
class Plain:
    x: "Unknown" = 3  # noqa: F821


@dataclasses.dataclass
class Tree:
    value: Annotated[int, Integer(0, 3)]
    left: "Optional[Tree]" = None


@dataclasses.dataclass
class Unreadable:
    x: "Annotated[Unknown, Float(0, 1)]"  # noqa: F821


def test_a_marked_class_whose_annotations_cannot_be_read_is_refused():
    def objective(config: Unreadable):
        raise NotImplementedError

    with pytest.raises(UnresolvedAnnotationError, match="'Unknown', in an annotation of `Unreadable`"):
        SearchSpace.of(objective)


@dataclasses.dataclass
class Aliased:
    x: "Alias"  # noqa: F821


def test_a_class_whose_annotations_cannot_be_read_is_not_searched_without_a_word(caplog):
    def objective(config: Aliased, x: Float(0, 1)):
        raise NotImplementedError

    assert list(SearchSpace.of(objective)) == ["x"]
    assert "The name 'Alias', in an annotation of `Aliased`, cannot be found" in caplog.text
    assert "If its fields have markers, they are not searched." in caplog.text


@pytest.mark.parametrize("value", [0.5, 3, True, Fixed(3)])
def test_a_value_as_an_annotation_is_refused(value):
    def objective(x: value, y: Float(0, 1)):
        raise NotImplementedError

    with pytest.raises(InvalidAnnotationError, match=r"which is a value and no type\. Write the value as the default"):
        SearchSpace.of(objective)


@dataclasses.dataclass
class SVM:
    C: Annotated[float, Float(0.1, 10, log=True)]
    degree: int = 3


@dataclasses.dataclass
class Forest:
    n_trees: Annotated[int, Integer(10, 100)]
    config: Schedule = dataclasses.field(default_factory=lambda: Schedule(1))


def fit(model: SVM | Forest, seed: int = 0) -> float:
    return 0.0


CHOICE = SearchSpace.of(fit)


def test_a_choice_between_classes_searches_the_fields_of_the_chosen_one():
    assert list(CHOICE) == [
        "model",
        "model.SVM.C",
        "model.Forest.n_trees",
        "model.Forest.config.warmup",
        "model.Forest.config.decay",
    ]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(20):
        trial = study.ask()
        point = CHOICE.suggest(trial)
        chosen = type(point["model"]).__name__
        seen.add(chosen)
        assert trial.params["model"] == chosen
        assert all(name == "model" or name.startswith(f"model.{chosen}.") for name in trial.params)
        assert CHOICE.contains(point)
        assert CHOICE.point(point) == trial.params
    assert seen == {"SVM", "Forest"}


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ({"model": "SVM"}, ["model.SVM.C"]),
        ({"model": SVM}, ["model.SVM.C"]),
        ({"model": SVM(1.0)}, []),
        ({"model": SVM(suggest.float(1, 2))}, ["model.SVM.C"]),
        ({"model": "SVM", "model.SVM.C": 1.0}, []),
        ({"model.SVM.C": 1.0, "model.Forest.config.warmup": 3}, ["model", *list(CHOICE)[2::2]]),
        ({"model": suggest.category([Forest])}, list(CHOICE)[:1] + list(CHOICE)[2:]),
        ({"model": Forest(20)}, []),
    ],
)
def test_a_class_and_its_fields_are_fixed_at_a_call(arguments, left):
    space = CHOICE.bind(**arguments)
    assert list(space) == left
    assert space.contains(sample(space))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "SVN"}, r"`model` must be one of `SVM`, `Forest`, but got 'SVN'. Did you mean `SVM`\?"),
        ({"model": 3}, "`model` must be a SVM or a Forest, but got 3. Give an object, a class or its name."),
        ({"model": Config}, "`model` must be one of `SVM`, `Forest`"),
        ({"model.C": 1.0}, "has no parameter `model.C`"),
    ],
)
def test_a_wrong_choice_of_a_class_is_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        CHOICE.bind(**arguments)


def test_a_union_that_cannot_be_searched_is_refused():
    def mixed(model: SVM | int):
        raise NotImplementedError

    with pytest.raises(InvalidAnnotationError, match=r"choice between `SVM` and <class 'int'>, which has no fields"):
        SearchSpace.of(mixed)

    other = dataclasses.make_dataclass("SVM", [("x", Annotated[float, Float(0, 1)])])

    def twice(model: SVM | other):
        raise NotImplementedError

    with pytest.raises(InvalidAnnotationError, match="two of the classes of `model` are called `SVM`"):
        SearchSpace.of(twice)


def test_a_search_finds_the_best_object():
    @optimize(n_trials=40, concurrency=4, seed=0)
    async def objective(model: SVM | Forest, config: Config) -> float:
        return config.lr + (model.C if isinstance(model, SVM) else 100.0)

    study = objective.run_sync(**{"config.depth": 3})
    best = objective.best(study, {"config.depth": 3})
    assert type(best["model"]) is SVM
    assert best["config"].depth == 3
    assert best["config"].lr + best["model"].C == study.best_value


CONFIG = Config(0.5, Schedule(3, 0.7), seed=5)


def made_with_defaults(config: Config = CONFIG):
    raise NotImplementedError


def test_fields_without_a_marker_keep_what_the_default_object_has():
    @dataclasses.dataclass
    class Outer:
        config: Config = dataclasses.field(default_factory=lambda: Config(0.5, Schedule(3), seed=6, notes=["a"]))

    def nested(outer: Outer):
        raise NotImplementedError

    assert sample(SearchSpace.of(made_with_defaults))["config"].seed == 5
    made = sample(SearchSpace.of(nested))["outer"].config
    assert (made.seed, made.notes) == (6, ["a"])
    assert sample(SearchSpace.of(nested))["outer"].config.notes is not made.notes
    assert SearchSpace.of(nested).contains({"outer": Outer(Config(0.05, Schedule(3), seed=6, notes=["a"]))})


@pytest.mark.parametrize(
    ("default", "message"),
    [
        ("nonsense", r"the default of `config` must be a Schedule, but got 'nonsense'"),
        (Schedule(suggest.integer(1, 3)), "the default of `config` holds a suggestion"),
    ],
)
def test_a_default_that_is_no_object_of_the_class_is_refused(default, message):
    def objective(config: Schedule = default):
        raise NotImplementedError

    with pytest.raises(InvalidMarkerError, match=message):
        SearchSpace.of(objective)


def test_an_inactive_field_gets_the_default_that_its_class_makes():
    @dataclasses.dataclass
    class Made:
        kind: Annotated[str, Category(["a", "b"])]
        weights: Annotated[list[float], Float(0, 1) * 2, When("kind", "a")] = dataclasses.field(
            default_factory=lambda: [9.0, 9.0]
        )

    class Absent(TypedDict):
        kind: Annotated[str, Category(["a", "b"])]
        rate: NotRequired[Annotated[float, Float(0, 1), When("kind", "a")]]

    def objective(made: Made, absent: Absent):
        raise NotImplementedError

    space = SearchSpace.of(objective).bind(**{"made.kind": "b", "absent.kind": "b"})
    assert not space
    point = sample(space)
    assert space.contains(point)
    assert point == {"made": Made("b", [9.0, 9.0]), "absent": {"kind": "b"}}
    active = SearchSpace.of(objective).bind(**{"made.kind": "a", "absent.kind": "a"})
    assert sample(active)["absent"].keys() == {"kind", "rate"}
    assert active.contains(sample(active))


def test_the_best_objects_can_be_given_to_a_call():
    """An object holds the defaults of its inactive fields, which lie outside of their markers."""

    def objective(model: "Conditional | Forest"):
        raise NotImplementedError

    space = SearchSpace.of(objective)
    for seed in range(10):
        point = sample(space, seed)
        assert sample(space.bind(**point)) == point
    assert space.bind(model=Conditional("linear")).arguments


@dataclasses.dataclass
class Conditional:
    kernel: Annotated[str, Category(["linear", "rbf"])]
    gamma: Annotated[float, Float(1e-3, 1), When("kernel", "rbf")] = 0.0


def test_a_condition_knows_the_class_of_any_object():
    @dataclasses.dataclass
    class Special(SVM):
        pass

    def objective(model: SVM | Forest, z: Annotated[float, Float(0, 1), When("model", SVM)] = 9.0):
        raise NotImplementedError

    for model in (SVM(1.0), Fixed(SVM(1e9)), Special(1.0)):
        assert list(SearchSpace.of(objective).bind(model=model)) == ["z"]
    assert list(SearchSpace.of(objective).bind(model=Fixed(Forest(20)))) == []


def test_an_initial_point_takes_a_class_or_its_name():
    for model in (SVM, "SVM"):
        assert CHOICE.convert_point({"model": model, "model.SVM.C": 1}) == {"model": "SVM", "model.SVM.C": 1.0}


def test_a_field_of_a_class_that_is_not_chosen_is_refused():
    with pytest.raises(ArgumentError, match=r"`model.SVM.C` is given, but no trial has it"):
        CHOICE.bind(**{"model": "Forest", "model.SVM.C": 3.0})


@pytest.mark.parametrize("given", [suggest.category([1, 2]), suggest.float(0, 1)])
def test_a_suggestion_of_something_else_than_objects_is_refused(given):
    for space, name in ((SPACE, "config"), (CHOICE, "model")):
        with pytest.raises(ArgumentError, match=f"`{name}` must be a .*, but got the suggestion"):
            space.bind(**{name: given})
    chosen = CHOICE.bind(model=suggest.category({"a": SVM(1.0), "b": Forest(10)}))
    assert type(sample(chosen)["model"]) in (SVM, Forest)


def test_what_flyte_cannot_tell_apart_is_refused():
    class Other(TypedDict):
        lr: Annotated[int, Integer(0, 1)]

    def dicts(options: Options | Other):
        raise NotImplementedError

    with pytest.raises(InvalidAnnotationError, match="choice between the TypedDicts `Options`, `Other`"):
        SearchSpace.of(dicts)


def test_points_of_other_fixed_arguments_are_not_taken_for_the_same():
    storage = optuna.storages.InMemoryStorage()

    @dataclasses.dataclass
    class Low:
        c: Annotated[float, Float(0, 1)]

    @dataclasses.dataclass
    class High:
        c: Annotated[float, Float(0, 1)]

    @optimize(n_trials=2, seed=1, duplicates="reuse", storage=storage, study_name="s")
    def objective(model: Low | High, k: Category([1])) -> float:
        return 1.0 if isinstance(model, Low) else 2.0

    objective.run_sync(model=Low(0.5))
    study = objective.run_sync(model=High(0.5))
    assert [trial.value for trial in study.trials] == [1.0, 1.0, 2.0, 2.0]


def test_a_class_that_refuses_values_is_drawn_without_them():
    class Picky(pydantic.BaseModel):
        x: Annotated[float, Float(0, 1)]

        @pydantic.field_validator("x")
        @classmethod
        def check(cls, value):
            if value < 0.5:
                raise ValueError("too low")
            return value

    def objective(picky: Picky):
        raise NotImplementedError

    @given(strategies.params(objective))
    def check(drawn):
        assert drawn["picky"].x >= 0.5

    check()


def test_classes_are_not_kept_alive():
    made = weakref.WeakSet()
    for index in range(600):
        kind = dataclasses.make_dataclass(f"K{index}", [("x", Annotated[float, Float(0, 1)])])
        made.add(kind)
        SearchSpace.from_signature(
            inspect.Signature([inspect.Parameter("k", inspect.Parameter.KEYWORD_ONLY, annotation=kind)])
        )
        del kind
    gc.collect()
    assert len(made) <= 513
