"""The markers as native Flyte types."""

import asyncio
import dataclasses
import typing
from typing import Annotated, Any, Optional

import flytekit as fl
import pydantic
import pytest
from flytekit.core.context_manager import FlyteContextManager
from flytekit.core.type_engine import TypeEngine
from flytekit.interaction.click_types import literal_type_to_click_type
from flytekit.models.types import SimpleType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optuna_flyte_dsl import (
    Category,
    Fixed,
    Float,
    Integer,
    InvalidMarkerTypeError,
    Ordinal,
    OutOfRangeError,
    SearchSpace,
    optimize,
    suggest,
)
from optuna_flyte_dsl.engines._flytekit.types import MarkerTransformer, native_type, register
from optuna_flyte_dsl.testing import space_strategies, strategies
from tests.support import spaces

CONTEXT = FlyteContextManager.current_context()


@pytest.mark.parametrize(
    ("marker", "simple"),
    [
        (Float(0, 1), SimpleType.FLOAT),
        (Integer(0, 1), SimpleType.INTEGER),
        (Category(["a", "b"]), SimpleType.STRING),
        (Category([1, 2]), SimpleType.INTEGER),
        (Category([0.5, 1.5]), SimpleType.FLOAT),
        (Category([True, False]), SimpleType.BOOLEAN),
    ],
)
@pytest.mark.parametrize("form", [lambda m: m, lambda m: Annotated[native_type(m), m]], ids=["bare", "annotated"])
def test_a_marker_is_its_native_type_to_flyte(marker, simple, form):
    assert TypeEngine.to_literal_type(form(marker)).simple == simple
    assert form(marker) == form(marker)


@pytest.mark.parametrize(
    ("annotation", "values"),
    [
        (Optional[Float(0, 1)], [None, 0.5]),
        (Float(0, 1) | None, [None, 0.5]),
        (typing.Union[str, Integer(0, 1)], ["a", 1]),
    ],
)
def test_a_marker_goes_into_a_union(annotation, values):
    literal_type = TypeEngine.to_literal_type(annotation)
    assert len({variant.simple for variant in literal_type.union_type.variants}) == 2
    for value in values:
        literal = TypeEngine.to_literal(CONTEXT, value, annotation, literal_type)
        assert TypeEngine.to_python_value(CONTEXT, literal, annotation) == value


@given(st.data())
def test_a_drawn_value_survives_the_way_through_a_literal(data):
    marker = data.draw(spaces.markers.filter(_is_carried))
    value = data.draw(strategies.values(marker))
    literal = TypeEngine.to_literal(CONTEXT, value, marker, TypeEngine.to_literal_type(marker))
    back = TypeEngine.to_python_value(CONTEXT, literal, marker)
    assert back == value
    assert type(back) is type(value)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(st.data())
def test_the_arguments_of_a_trial_survive_the_way_through_literals(data):
    signature = data.draw(space_strategies.signatures())
    drawn = data.draw(strategies.params(SearchSpace.from_signature(signature)))
    for name, value in drawn.items():
        annotation = signature.parameters[name].annotation
        literal = TypeEngine.to_literal(CONTEXT, value, annotation, TypeEngine.to_literal_type(annotation))
        assert TypeEngine.to_python_value(CONTEXT, literal, annotation) == value


class Padding(typing.NamedTuple):
    width: int
    mode: str = "zero"


class Loaded(typing.TypedDict):
    rate: Annotated[float, Float(0, 1)]
    padding: typing.NotRequired[Padding]


@dataclasses.dataclass
class Carrier:
    """A user's class may have the name that the library gives its own."""

    act: Category({"max": max, "min": min})
    weight: float = 1.0


@dataclasses.dataclass
class Ship:
    carrier: Carrier
    depth: Annotated[int, Integer(1, 9)] = 3


@dataclasses.dataclass
class Network:
    betas: tuple[float, float]
    act: Category({"max": max, "min": min})
    depth: Annotated[int, Integer(1, 9)] = 3
    padding: Optional[Padding] = None
    names: list[str] = dataclasses.field(default_factory=list)
    rate: float = 0


class Hidden(pydantic.BaseModel):
    x: Annotated[float, Float(0, 1)]
    n: Annotated[int, Integer(1, 9)] = pydantic.Field(1, exclude=True)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Loaded, {"rate": 0.5}),
        (Ship, Ship(Carrier(min))),
        (Loaded, {"rate": 0.5, "padding": Padding(1, "same")}),
        (Network, Network((0.9, 0.99), min, names=["a"], padding=Padding(3))),
        (Annotated[Network, "a note"], Network((0.9, 0.99), min)),
        (Optional[Network], None),
        (Network, Network((0.9, 0.99), max, rate=1)),
        (Hidden, Hidden(x=0.5, n=7)),
        (list[Network], [Network((0.9, 0.99), max)]),
        (dict[str, Network | Loaded], {"a": {"rate": 0.5}}),
    ],
)
def test_objects_of_each_kind_of_class_survive_the_way_through_a_literal(annotation, value):
    literal = TypeEngine.to_literal(CONTEXT, value, annotation, TypeEngine.to_literal_type(annotation))
    back = TypeEngine.to_python_value(CONTEXT, literal, annotation)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"Network": {"betas": [0.9, 0.99], "act": "min"}}', Network([0.9, 0.99], min)),
        ('{"Hidden": {"x": 0.5}}', Hidden(x=0.5)),
    ],
)
def test_a_user_of_pyflyte_run_writes_an_object_as_text(text, value):
    annotation = Network | Hidden
    literal = TypeEngine.to_literal(CONTEXT, text, annotation, TypeEngine.to_literal_type(annotation))
    assert (
        TypeEngine.to_python_value(CONTEXT, literal, annotation).__dict__.items()
        >= {name: each for name, each in value.__dict__.items() if name != "betas"}.items()
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"Netwrk": {}}', "An object of the class Network or Hidden is needed"),
        ("[1]", "Write the class and its fields as JSON"),
        ("Hidden", "Hidden refuses the fields {}"),
    ],
)
def test_a_text_that_is_no_object_is_named(text, message):
    annotation = Network | Hidden
    with pytest.raises(Exception, match=message):
        TypeEngine.to_literal(CONTEXT, text, annotation, TypeEngine.to_literal_type(annotation))


BRANCHING = Category({"sgd": {"momentum": Float(0, 1)}, "none": 7})


def test_a_user_of_pyflyte_run_writes_a_choice_with_markers_as_text():
    kind = TypeEngine.to_literal_type(BRANCHING)
    literal = TypeEngine.to_literal(CONTEXT, '{"value": "sgd", "value.sgd.momentum": 0.5}', BRANCHING, kind)
    assert TypeEngine.to_python_value(CONTEXT, literal, BRANCHING) == {"momentum": 0.5}
    with pytest.raises(InvalidMarkerTypeError, match="For `pyflyte run`, write the choice and the parameters inside"):
        TypeEngine.to_literal(CONTEXT, "sgd", BRANCHING, kind)


def test_pyflyte_run_has_options_for_classes_and_choices():
    @optimize
    @fl.task
    def train(model: Network | Hidden, opt: BRANCHING = 7, other: Network | Hidden | None = None) -> float:
        return float(opt == 7)

    interface, types = train.task.interface, train.task.python_interface
    for name, variable in interface.inputs.items():
        literal_type_to_click_type(variable.type, types.inputs[name])
    assert train.task(model=Hidden(x=0.5)) == 1.0


def test_an_object_of_another_class_is_named():
    with pytest.raises(Exception, match="An object of the class Network is needed, but got 3, of type int"):
        TypeEngine.to_literal(CONTEXT, 3, Network, TypeEngine.to_literal_type(Network))


def _is_carried(marker):
    """Flyte carries neither None nor a tuple as the value of a choice that has a name."""
    return getattr(marker, "names", None) is None or not {None, (1, 2)} & set(marker.choices)


@pytest.mark.parametrize("choices", [{"a": None, "b": 1}, {"a": (1, 2), "b": len}])
def test_a_choice_that_flyte_cannot_carry_is_refused(choices):
    with pytest.raises(InvalidMarkerTypeError, match=r"a task takes neither None nor a tuple .* Use a list, or a str"):
        TypeEngine.to_literal_type(Category(choices))


@pytest.mark.parametrize(
    ("annotation", "values"),
    [
        (Annotated[typing.Literal["a", "b"], Category()], ["a", "b"]),
        (Annotated[typing.Literal[1, 2], "a note", Category()], [1, 2]),
        (Annotated[spaces.Kernel, Category()], list(spaces.Kernel)),
        (Annotated[spaces.Kernel, Category([spaces.Kernel.RBF])], [spaces.Kernel.RBF]),
        (Annotated[spaces.Size, Ordinal()], list(spaces.Size)),
        (Annotated[bool, Category()], [False, True]),
        (Optional[Annotated[spaces.Kernel, Category()]], [None, *spaces.Kernel]),
    ],
)
def test_an_annotated_enum_and_literal_survive_the_way_through_a_literal(annotation, values):
    literal_type = TypeEngine.to_literal_type(annotation)
    for value in values:
        literal = TypeEngine.to_literal(CONTEXT, value, annotation, literal_type)
        assert TypeEngine.to_python_value(CONTEXT, literal, annotation) is value


def test_flyte_carries_an_enum_of_strings_as_its_enum_and_other_choices_by_their_names():
    assert TypeEngine.to_literal_type(Category(spaces.Kernel)).enum_type.values == ["linear", "rbf"]
    objects = Category({"length": len, "rbf": "not its name"})
    for marker in (Category(spaces.Size), objects):
        assert TypeEngine.to_literal_type(marker).simple == SimpleType.STRING
    for value in ("length", len):
        literal = TypeEngine.to_literal(CONTEXT, value, objects, TypeEngine.to_literal_type(objects))
        assert literal.scalar.primitive.string_value == "length"
        assert TypeEngine.to_python_value(CONTEXT, literal, objects) is len
    with pytest.raises(Exception, match=r"'other' is no choice of Category\(\{'length': ..., 'rbf': ...\}\)"):
        TypeEngine.to_literal(CONTEXT, "other", objects, TypeEngine.to_literal_type(objects))


def test_flytekits_own_enums_and_literals_are_left_to_it():
    for annotation in (spaces.Kernel, float, Annotated[float, "a note"], Annotated[float, Float(0, 1)]):
        assert not isinstance(TypeEngine.get_transformer(annotation), MarkerTransformer)
    with pytest.raises(ValueError, match="does not currently have support"):
        TypeEngine.to_literal_type(Annotated[spaces.Kernel, "a note"])


def test_a_marker_without_values_is_refused_where_no_type_stands_beside_it():
    for marker in (Category(), Float(), Integer(low=1)):
        with pytest.raises(InvalidMarkerTypeError, match=r"without a type beside it\. Write"):
            TypeEngine.to_literal_type(marker)


def test_an_int_for_a_float_becomes_one():
    literal = TypeEngine.to_literal(CONTEXT, 1, Float(0, 1), TypeEngine.to_literal_type(Float(0, 1)))
    assert literal.scalar.primitive.float_value == 1.0


def test_a_bare_marker_works_in_a_task_and_in_a_workflow():
    @fl.task
    async def task(x: Float(-1, 1), n: Integer(1, 3), c: Category(["a", 2]), o: Optional[Float(0, 1)] = None) -> float:
        assert (type(x), type(n)) == (float, int)
        return x * n + len(str(c)) + (o or 0)

    assert asyncio.run(task(x=0.5, n=2, c="a")) == 2.0

    @fl.task
    def sync(x: Float(-1, 1)) -> float:
        return x

    @fl.workflow
    def workflow(x: float) -> float:
        return sync(x=x)

    assert workflow(x=0.25) == 0.25


def test_choices_that_flyte_has_no_literal_for_are_named():
    with pytest.raises(InvalidMarkerTypeError, match=r"but got \(1, 2\), of type tuple. Give the choices names"):
        native_type(Category([(1, 2), (3,)]))


@optimize(n_trials=2, seed=1, progress=False)
@fl.task
def chooses(
    kernel: Category(spaces.Kernel),
    again: Annotated[Optional[spaces.Kernel], Category()],
    size: Annotated[spaces.Size, Category()],
    act: Annotated[Any, Category({"max": max, "min": min})],
    other: Optional[Annotated[spaces.Kernel, Category()]] = None,
    fold: Category({"max": max, "min": min}) = max,
) -> float:
    assert (kernel in spaces.Kernel, again in spaces.Kernel, size in spaces.Size) == (True, True, True)
    return float(act(1, 2))


def test_pyflyte_run_sees_an_enum_and_the_search_its_marker():
    inputs = chooses.task.python_interface.inputs
    assert (inputs["kernel"], inputs["again"]) == (spaces.Kernel, Optional[spaces.Kernel])
    assert inputs["other"] == Optional[spaces.Kernel]
    assert chooses.task.python_interface.inputs_with_defaults["fold"][1] == "max"  # a command would call a function
    for search in (chooses, optimize(chooses.task, n_trials=2, progress=False)):
        assert search.space["kernel"] == search.space["again"] == search.space["other"] == Category(spaces.Kernel)
        assert [trial.state.name for trial in search.run_sync().trials] == ["COMPLETE"] * 2
    assert {variable.type.simple for variable in (chooses.task.interface.inputs[name] for name in ("size", "act"))} == {
        SimpleType.STRING
    }


@pytest.mark.parametrize(
    "given", [{"act": Fixed(sum)}, {"act": suggest.category({"sum": sum})}, {"kernel": suggest.category(["RBF"])}]
)
def test_a_choice_that_flyte_does_not_carry_is_refused_at_the_call(given):
    with pytest.raises(OutOfRangeError, match=r"Flyte carries them by their names, but got .* Add it to the ch"):
        chooses.run_sync(**given)
    assert chooses.space.bind(act=Fixed(max)).arguments["act"] is max


def test_registering_twice_changes_nothing():
    before = TypeEngine.get_transformer(Float(0, 1))
    register()
    assert TypeEngine.get_transformer(Float(0, 1)) is before
