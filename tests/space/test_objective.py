import functools
import re
from collections.abc import Awaitable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple, Optional, Union

import flytekit as fl
import numpy as np
import optuna
import pytest
from optuna.study import StudyDirection

from optuna_flyte_dsl import (
    Constraint,
    DirectionError,
    Float,
    Integer,
    InvalidAnnotationError,
    InvalidObjectiveError,
    Maximize,
    Minimize,
    ObjectiveValueError,
    Optimizer,
    optimize,
)
from optuna_flyte_dsl.engines.engine_choice import read_objective
from optuna_flyte_dsl.space.objective import Kind, read_values

MIN, MAX = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE


class Quality(NamedTuple):
    accuracy: Maximize
    seconds: Minimize


def returning(annotation):
    def objective(x: Float(0, 1)):
        raise NotImplementedError

    objective.__annotations__["return"] = annotation
    return objective


@pytest.mark.parametrize(
    ("annotation", "directions"),
    [
        (float, (None,)),
        (int, (None,)),
        (np.float64, (None,)),
        (Annotated[float, "accuracy"], (None,)),
        (Minimize, (MIN,)),
        (Maximize, (MAX,)),
        (tuple[float, float], (None, None)),
        (tuple[Maximize, int], (MAX, None)),
        (tuple[float], (None,)),
        (Quality, (MAX, MIN)),
        (Awaitable[Maximize], (MAX,)),
        (tuple[float, ...], None),
        (Any, None),
        (Union[float, tuple[float, float]], None),
        (fl.FlyteContext, None),
        (Optional[Maximize], (MAX,)),
        (Maximize | None, (MAX,)),
        (tuple[int | float, np.float32], (None, None)),
        (Annotated[np.float32, "x"], (None,)),
    ],
)
def test_the_return_annotation_says_how_many_objectives_there_are_and_where_they_go(annotation, directions):
    assert read_objective(returning(annotation)).returns.directions == directions


def test_the_fields_of_a_named_tuple_are_the_objectives_names():
    assert read_objective(returning(Quality)).returns.names == ("accuracy", "seconds")


@pytest.mark.parametrize(
    "annotation",
    [
        str,
        None,
        bool,
        dict[str, float],
        tuple[float, str],
        tuple[str, ...],
        tuple[()],
        Annotated[str, 1],
        [Maximize, Minimize],
        [float],
        {"accuracy": Maximize},
        {Maximize},
    ],
)
def test_a_return_annotation_that_is_no_number_is_refused(annotation):
    with pytest.raises(InvalidObjectiveError, match=r"`objective` must return a float, or a tuple of floats") as caught:
        optimize(returning(annotation))
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "annotation",
    [tuple[Maximize, ...], Union[Maximize, tuple[float, float]], Sequence[Maximize], Iterator[Annotated[float, MAX]]],
)
def test_a_direction_that_would_be_lost_is_refused(annotation):
    with pytest.raises(DirectionError, match="names a direction, but not how many objectives there are"):
        optimize(returning(annotation))


class Swapped(NamedTuple):
    seconds: Minimize
    accuracy: Maximize


def test_the_values_of_another_named_tuple_are_not_told_to_the_wrong_objectives():
    @optimize(n_trials=3, progress=False)
    def objective(x: Float(0, 1)) -> Quality:
        return Swapped(seconds=x, accuracy=1 - x)

    with pytest.raises(ObjectiveValueError, match=r"returned Swapped\(.* has the fields accuracy, seconds"):
        objective.run_sync()


class Bounded(NamedTuple):
    memory: Constraint
    accuracy: Maximize
    seconds: Minimize
    disk: Constraint


@pytest.mark.parametrize("returned", [Bounded(-1.0, 0.5, 3.0, 2.0), (-1.0, 0.5, 3.0, 2.0)])
def test_the_fields_of_a_named_tuple_may_be_constraints_too(returned):
    assert read_objective(returning(Bounded)).returns.fields == Bounded._fields

    @optimize(n_trials=1, concurrency=2, progress=False)
    def objective(x: Float(0, 1)) -> Bounded:
        return returned

    assert objective.run_sync().trials[0].values == [0.5, 3.0]


def test_an_objective_has_one_direction():
    with pytest.raises(DirectionError, match="a returned value has one direction"):
        optimize(returning(Annotated[float, MIN, MAX]))


def test_a_parameter_trial_that_is_something_else_is_refused():
    def marked(x: Float(0, 1), trial: Float(0, 1)) -> float: ...
    def number(x: Float(0, 1), trial: int) -> float: ...
    def bare(x: Float(0, 1), trial: Annotated[float, Float(0, 1)]) -> float: ...
    def text(x: Float(0, 1), trial: str) -> float: ...

    for objective in (marked, number, bare, text):
        with pytest.raises(InvalidObjectiveError, match=r"`trial` gets the `optuna\.Trial`, but its"):
            optimize(objective)

    def typed(x: Float(0, 1), trial: optuna.trial.BaseTrial) -> float: ...
    def untyped(trial) -> float: ...
    def late(trial: "optuna.Trial | None") -> float: ...

    for objective in (typed, untyped, late):
        assert read_objective(objective).takes_trial


def test_a_number_is_no_list():
    def listed(x: Annotated[list[float], Float(0, 1)]) -> float: ...
    def optional(x: Annotated[tuple[int, ...] | None, Integer(0, 1)] = None) -> float: ...
    def inside(x: list[Float(0, 1)]) -> float: ...

    for objective in (listed, optional, inside):
        with pytest.raises(InvalidAnnotationError, match=r"list.*, write `(Float|Integer)\(0, 1\) \* 3`"):
            optimize(objective)


def test_a_marker_of_any_number_of_arguments_is_refused():
    def several(x: Float(0, 1), *rest: Float(0, 1)) -> float: ...
    def named(**x: Annotated[float, Float(0, 1)]) -> float: ...

    for objective, name in ((several, "*rest"), (named, "**x")):
        with pytest.raises(InvalidAnnotationError, match=re.escape(f"`{name}` has a marker, but")):
            optimize(objective)


@fl.task
async def async_task(x: Float(0, 1), y: int, z: str = "z") -> float:
    return x


@fl.task
def sync_task(x: Float(0, 1), y: int = 3) -> Maximize:
    return x


@fl.task
def two(x: float) -> Quality:
    return Quality(x, x)


@fl.workflow
def workflow(x: Float(0, 1), y: int = 3) -> Maximize:
    return sync_task(x=x, y=y)


launch_plan = fl.LaunchPlan.get_or_create(workflow, "a_launch_plan", default_inputs={"x": 0.5}, fixed_inputs={"y": 4})


@fl.reference_task(project="p", domain="d", name="n", version="v")
def reference(x: float) -> float: ...


container = fl.ContainerTask(
    name="a_container", image="i", command=["c"], inputs=fl.kwtypes(x=float), outputs=fl.kwtypes(loss=float)
)


@pytest.mark.parametrize(
    ("target", "searched", "others", "directions"),
    [
        (async_task, ["x"], {"z": "z"}, (None,)),
        (sync_task, ["x"], {"y": 3}, (MAX,)),
        (two, [], {}, (MAX, MIN)),
        (workflow, ["x"], {"y": 3}, (MAX,)),
        (launch_plan, ["x"], {}, (MAX,)),
        (reference, [], {}, (None,)),
        (container, [], {}, (None,)),
    ],
)
def test_every_kind_of_flyte_entity_is_read(target, searched, others, directions):
    objective = read_objective(target)
    assert objective.kind is Kind.TASK
    assert list(objective.space) == searched
    assert {n: v for n, v in objective.space.arguments.items() if n not in objective.space} == others
    assert objective.returns.directions == directions


def test_functions_are_told_apart():
    async def coroutine(trial): ...

    class Callable:
        async def __call__(self, trial): ...

    assert read_objective(coroutine).kind is Kind.ASYNC_FUNCTION
    assert read_objective(functools.partial(coroutine)).kind is Kind.ASYNC_FUNCTION
    assert read_objective(Callable()).kind is Kind.ASYNC_FUNCTION
    assert read_objective(lambda trial: 1.0).kind is Kind.FUNCTION
    assert read_objective(functools.partial(lambda trial, x: 1.0, x=1)).takes_trial
    assert read_objective(Callable()).name == "Callable"


def test_a_function_needs_a_trial_or_a_marker():
    def objective(value: float):
        return 1.0

    with pytest.raises(InvalidObjectiveError) as caught:
        Optimizer(objective, concurrency=1, n_trials=1)
    assert str(caught.value) == (
        "`objective` must have a parameter called `trial`, or a marker in its signature, but it has `value`. Write "
        "`def objective(trial: optuna.Trial)`, or mark a parameter of a function, as in `x: Float(0, 1)`."
    )


def test_a_generator_is_refused():
    def function(x: Float(0, 1)):
        yield x

    async def coroutine(x: Float(0, 1)):
        yield x

    class Callable:
        def __call__(self, x: Float(0, 1)):
            yield x

    for objective in (function, coroutine, Callable(), functools.partial(function)):
        with pytest.raises(InvalidObjectiveError, match=r"it is a generator. Write `return`"):
            optimize(objective)


def test_the_trial_is_called_trial():
    def takes_t(t: optuna.Trial, x: Float(0, 1)) -> float:
        return x

    @fl.task
    def task_takes_t(t: optuna.Trial, x: Float(0, 1)) -> float:
        return x

    for objective in (takes_t, task_takes_t):
        with pytest.raises(InvalidObjectiveError, match=r"must be the parameter `trial`, but it is called `t`"):
            Optimizer(objective, concurrency=1, n_trials=1)


@pytest.mark.parametrize("wrong", [3, "objective", Quality])
def test_what_is_no_objective_is_refused(wrong):
    with pytest.raises(InvalidObjectiveError, match="must be a Flyte task, workflow or launch plan, or a function"):
        Optimizer(wrong, concurrency=1, n_trials=1)


@pytest.mark.parametrize(
    ("annotation", "given", "result"),
    [
        (float, None, (MIN,)),
        (float, [MAX], (MAX,)),
        (Maximize, None, (MAX,)),
        (Maximize, [MAX], (MAX,)),
        (tuple[Maximize, float], [MAX, MIN], (MAX, MIN)),
        (Quality, None, (MAX, MIN)),
        (Any, None, None),
        (Any, [MAX, MAX], (MAX, MAX)),
    ],
)
def test_directions_come_from_the_annotation_and_from_the_user(annotation, given, result):
    assert read_objective(returning(annotation)).directions_with(given) == result


@pytest.mark.parametrize(
    ("annotation", "options", "message"),
    [
        (Maximize, {"direction": "minimize"}, r"says maximize for objective 1, but .* says minimize"),
        (float, {"directions": ["minimize", "maximize"]}, r"returns 1 objective, but the study has 2 directions"),
        (
            tuple[float, float],
            {"study": optuna.create_study()},
            r"returns 2 objectives, but the study has 1 direction: minimize",
        ),
        (tuple[Maximize, float], {}, r"direction of number 2 is not known. Give a study, or `directions="),
        (tuple[float, float], {}, r"direction of number 1 is not known"),
        (
            Quality,
            {"study": optuna.create_study(directions=["maximize", "maximize"])},
            "says minimize for objective 2",
        ),
        (
            float,
            {"study": optuna.create_study(), "direction": "maximize"},
            "says maximize, but the study says minimize",
        ),
    ],
)
def test_a_contradiction_of_directions_is_refused_at_decoration(annotation, options, message):
    with pytest.raises(DirectionError, match=message):
        optimize(**options)(returning(annotation))


@pytest.mark.parametrize(
    ("returned", "count", "values"),
    [
        (1, 1, (1.0,)),
        (0.5, 1, (0.5,)),
        (True, 1, (1.0,)),
        (np.float32(0.5), 1, (0.5,)),
        (np.array(2.0), 1, (2.0,)),
        ((1.0,), 1, (1.0,)),
        ((1, 2.5), 2, (1.0, 2.5)),
        ([1, 2], 2, (1.0, 2.0)),
        (Quality(1.0, 2.0), 2, (1.0, 2.0)),
        (float("inf"), 1, (float("inf"),)),
    ],
)
def test_returned_numbers_become_values(returned, count, values):
    assert read_values("objective", returned, count) == values


@pytest.mark.parametrize(
    ("returned", "count", "message"),
    [
        (None, 1, "`objective` must return a number, but it returned None, of type NoneType. Return a float"),
        ("0.5", 1, "`objective` must return a number, but it returned '0.5', of type str"),
        ((1.0, None), 2, "must return a tuple of 2 numbers, but it returned (1.0, None), of type tuple"),
        ({"loss": 1.0}, 1, "must return a number, but it returned {'loss': 1.0}, of type dict"),
        ((1.0, 2.0), 1, "returned 2 values, (1.0, 2.0), but the study has 1 direction. Return one value for each"),
        (1.0, 2, "returned 1 value, 1.0, but the study has 2 directions"),
        ((), 1, "returned 0 values"),
    ],
)
def test_what_no_study_can_take_is_shown(returned, count, message):
    with pytest.raises(ObjectiveValueError) as caught:
        read_values("objective", returned, count)
    assert message in str(caught.value)
