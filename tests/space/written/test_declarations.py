"""Spaces as dicts, and back."""

import dataclasses
import enum
import json
import re
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optuna_flyte_dsl import (
    ArgumentError,
    Category,
    Fixed,
    Float,
    Integer,
    InvalidSpaceError,
    Ordinal,
    OutOfRangeError,
    SearchSpace,
    When,
    suggest,
)
from optuna_flyte_dsl.testing import strategies
from tests.support.spaces import spaces as flat_spaces


class Kind(enum.Enum):
    SMALL = "small"
    LARGE = "large"


@dataclasses.dataclass(frozen=True)
class SVM:
    C: Annotated[float, Float(0.1, 10, log=True)]
    kernel: Annotated[str, Category(["linear", "rbf"])] = "linear"
    gamma: Annotated[float, Float(1e-3, 1, log=True), When("kernel", "rbf")] = 0.0


@dataclasses.dataclass(frozen=True)
class Forest:
    n_trees: Annotated[int, Integer(10, 500, step=10)]
    names: list[str] = dataclasses.field(default_factory=list)
    depth: int = 3


def everything(
    model: SVM | Forest,
    single: Forest,
    kind: Annotated[Kind, Category()],
    size: Annotated[int, Ordinal([16, 32, 64])],
    booster: Annotated[Literal["a", "b"], Category()],
    function: Category({"lower": str.lower, "size": 3.5}),
    inner: Category({"svm": {"C": Float(0, 1)}, "other": ("x", 1)}),
    n_layers: Integer(1, 3),
    widths: Integer(16, 256, log=True) * "n_layers",  # noqa: F821
    pair: Annotated[list[float], Float(0, 1, step=0.25) * 2],
    needed: str,
    anything: Any = None,
    momentum: Annotated[float | None, Float(0, 1), When("kind", Kind.SMALL) & ~When("n_layers", ge=2)] = None,
    choice: Annotated[int, Integer(0, 9), When("model", SVM) | When("model.Forest.n_trees", gt=100, le=300)] = 0,
) -> float: ...


SPACE = SearchSpace.of(everything)
CALLS: list[dict[str, Any]] = [
    {},
    {"needed": "x", "anything": {1: (2, {3}), "y": [float("inf"), None]}, "momentum": None},
    {"model": "SVM", "model.SVM.C": Fixed(99.0), "n_layers": 2, "widths": [16, 32]},
    {"model": SVM(1.0), "single": Forest(10, ["a"]), "kind": Kind.LARGE, "size": suggest.ordinal([32, 64])},
    {"model": suggest.category(["SVM"]), "single.n_trees": 20, "inner": "svm", "function": "lower"},
    {"inner": {"C": suggest.float(0, 0.5)}, "anything": [suggest.integer(0, 9), {"a": suggest.category(["b"])}]},
    {"inner": ("x", 1), "anything": SVM(suggest.float(1, 2)), "pair": [0.25, 0.5]},
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("form", ["dict", "json", "yaml"])
def test_a_space_is_the_same_after_it_was_written_and_read(call, form):
    space = SPACE.bind(**call)
    if form == "dict":
        again = SearchSpace.from_dict(space.to_dict(), everything)
    elif form == "json":
        again = SearchSpace.from_json(space.to_json(), everything)
    else:
        again = SearchSpace.from_yaml(space.to_yaml(), everything)
    assert again == space, again.difference(space)
    assert str(again) == str(space)
    assert again.to_dict() == space.to_dict()


@given(strategies.spaces(), st.data())
def test_any_space_is_the_same_after_it_was_written_and_read(space, data):
    again = SearchSpace.from_json(space.to_json(), space)
    assert again == space
    assert again.conditions == space.conditions
    assert again.distributions() == space.distributions()
    drawn = data.draw(strategies.params(space))
    assert again.contains(drawn)
    assert SearchSpace.from_yaml(space.to_yaml(), space) == space


@given(flat_spaces)
@settings(max_examples=50)
def test_a_space_without_classes_needs_no_objective(space):
    assert SearchSpace.from_yaml(space.to_yaml()) == space


def test_a_class_that_is_read_anew_is_the_same():
    space = SearchSpace.of(everything)
    for index in range(600):  # more classes than are kept
        SearchSpace.of(lambda x: x).bind(x=dataclasses.make_dataclass(f"C{index}", [("y", float)])(y=Float(0, 1)))
    assert SearchSpace.of(everything) == space


def test_a_space_whose_classes_are_imported_needs_no_objective():
    def train(model: SVM | Forest, kind: Annotated[Kind, Category()]) -> float: ...

    space = SearchSpace.of(train)
    assert SearchSpace.from_dict(space.to_dict()) == space


def test_reading_a_space_imports_no_module():
    data = {"parameters": {"x": {"kind": "category", "choices": {"a": {"$reference": "antigravity:geohash"}}}}}
    with pytest.raises(InvalidSpaceError, match=r"'antigravity:geohash', which is not known here\. Import"):
        SearchSpace.from_dict(data)


def test_a_read_space_is_as_useful_as_the_declared_one():
    again = SearchSpace.from_dict(SPACE.to_dict(), everything)
    bound = again.bind(needed="x", **{"model.SVM.C": 5.0})
    assert bound == SPACE.bind(needed="x", **{"model.SVM.C": 5.0})
    with pytest.raises(OutOfRangeError, match="n_layers"):
        again.bind(n_layers=9)


class Plain:
    def __init__(self, number):
        self.number = number


NETS = [Plain(number) for number in range(3)]


def test_several_objects_in_one_place_are_told_apart():
    def objective(
        net: Category(dict(zip("abc", NETS, strict=True))),
        y: Annotated[Any, Category(["x"]), When("net", NETS[0], NETS[1])] = NETS[2],
        z: Any = None,
    ): ...

    space = SearchSpace.of(objective).bind(z={NETS[0]: 1, NETS[1]: 2})
    again = SearchSpace.from_dict(space.to_dict(), space)
    assert again == space
    assert again.conditions["y"].holds({"net": NETS[0]})
    assert again.fixed_values()["z"] == {NETS[0]: 1, NETS[1]: 2}


def test_a_function_without_a_name_of_its_own_is_found_by_its_place():
    def before(act: Category({"relu": lambda x: max(x, 0), "same": lambda x: x})): ...

    def after(
        norm: Category({"n": lambda _: 0, "m": lambda _: 1}),
        act: Category({"relu": lambda x: max(x, 0), "same": lambda x: x}),
    ): ...

    text = SearchSpace.of(before).to_yaml()
    assert "lambda" not in text
    space = SearchSpace.from_yaml(text, after)
    assert space.fill({"norm": "n", "act": "relu"})["act"](5) == 5


class Access(enum.Flag):
    READ = 1
    WRITE = 2


def test_members_under_other_names_keep_their_names():
    def objective(
        kind: Category({"small": Kind.SMALL, "large": Kind.LARGE}),
        access: Category({"read": Access.READ, "both": Access.READ | Access.WRITE}),
    ): ...

    space = SearchSpace.of(objective)
    assert SearchSpace.from_yaml(space.to_yaml(), objective) == space


def test_a_file_that_says_nothing_of_a_condition_keeps_it():
    def objective(kernel: Category(["a", "b"]), gamma: Annotated[float, Float(0, 1), When("kernel", "a")] = 0.5): ...

    narrow = {"kind": "float", "low": 0, "high": 0.5}
    space = SearchSpace.from_dict({"parameters": {"gamma": narrow}}, objective)
    assert space == SearchSpace.of(objective).replace(gamma=Float(0, 0.5))
    assert not SearchSpace.from_dict({"parameters": {"gamma": {**narrow, "when": None}}}, objective).conditions


def test_a_file_of_arguments_fixes_values():
    space = SearchSpace.from_dict({"arguments": {"n_layers": 2, "needed": "x"}}, everything)
    assert space == SPACE.bind(n_layers=2, needed="x")


def test_a_field_is_named_by_its_path():
    entry = {"kind": "integer", "low": 10, "high": 20}
    space = SearchSpace.from_dict({"parameters": {"single.n_trees": entry}}, everything)
    assert space == SPACE.replace(**{"single.n_trees": Integer(10, 20)})


def test_a_class_is_found_although_its_script_had_another_name():
    text = SPACE.to_yaml().replace(f"{__name__}:", "__main__:")
    assert SearchSpace.from_yaml(text, everything) == SPACE


def test_reading_does_not_run_what_a_module_does_for_a_missing_name():
    import concurrent.futures  # has a `__getattr__` that imports

    assert concurrent.futures
    choices = {"a": {"$reference": "concurrent.futures:ProcessPoolExecutor.none"}}
    with pytest.raises(InvalidSpaceError, match="which is not known here"):
        SearchSpace.from_dict({"parameters": {"x": {"kind": "category", "choices": choices}}})


def test_what_cannot_be_written_is_named():
    class Own(Float):
        pass

    with pytest.raises(InvalidSpaceError, match="is of the class Own, which no file can name"):
        SPACE.bind(anything=[Own(0, 1)]).to_dict()


def test_the_text_is_one_that_people_can_read_and_change():
    def train(lr: Float(1e-5, 1e-1, log=True), kind: Category(["no", "1e5"]), data: str = "wine") -> float: ...

    text = SearchSpace.of(train).to_yaml()
    assert text == (
        "version: 1\n"
        "objective: train\n"
        "parameters:\n"
        "  lr: {kind: float, low: 1.0e-05, high: 0.1, log: true}\n"
        "  kind:\n"
        "    kind: category\n"
        "    choices: ['no', '1e5']\n"
        "  data: {type: str, default: wine}\n"
    )
    changed = text.replace("1.0e-05", "1e-4").replace("'no'", "no")
    assert dict(SearchSpace.from_yaml(changed)) == {"lr": Float(1e-4, 1e-1, log=True), "kind": Category(["no", "1e5"])}


def test_what_the_data_leaves_out_is_what_the_objective_declares():
    def train(x: Float(0, 1), y: Integer(1, 5), z: str = "a") -> float: ...

    space = SearchSpace.from_dict({"parameters": {"y": {"kind": "integer", "low": 2, "high": 3}}}, train)
    assert dict(space) == {"x": Float(0, 1), "y": Integer(2, 3)}
    assert space.fixed_values() == {"z": "a"}


X = {"kind": "float", "low": 0, "high": 1}
FAULTS = [
    ([], "a search space must be a dict, but got \\[\\]"),
    ({"parameters": {}, "version": 2}, "has the version 2, but this library reads the version 1"),
    ({"parametres": {}}, "has the key `parametres`, but only .* Did you mean `parameters`?"),
    ({}, "lacks `parameters`, a dict of the parameters by name"),
    ({"parameters": {"x": {**X, "default": 7}}}, "the default of `x` must lie within Float.0, 1., but got 7"),
    ({"parameters": {"x": {**X, "default": "q"}}}, "the default of `x` must be of type float, but got 'q'"),
    ({"parameters": {"x": {"type": "int", "default": "q"}}}, "the default of `x` must be of type int, but got 'q'"),
    ({"parameters": {"x": {**X, "default": {"$object": {"classs": "a"}}}}}, "has the key `classs`, .* `class`"),
    ({"parameters": {"x": {**X, "kind": ["float"]}}}, "`x`: `kind` must be one of"),
    ({"parameters": {"x": {**X, "type": "Literal[[1]]"}}}, "`x`: `type` must be a type"),
    ({"parameters": {"x": {**X, "when": {"parameter": "y", "values": "bc"}}}}, "`values` must be a list, but got 'bc'"),
    ({"parameters": {"x": 3}}, "`x`: a parameter must be a dict, but got 3. To fix a value, .* `arguments`"),
    (
        {"parameters": {"x": {"kind": "classes", "classes": {"Forrest": {"class": f"{__name__}:Forest"}}}}},
        "the class `Forest` must stand under its own name, but got `Forrest`",
    ),
    ({"parameters": {"x": {"kind": "flaot"}}}, "`x`: `kind` must be one of float, .*'flaot'. Did you mean `float`"),
    ({"parameters": {"x": {"low": 1}}}, "`x`: `kind` must be one of float, .* but got None"),
    ({"parameters": {"x": {**X, "hihg": 2}}}, "`x` has the key `hihg`, .* Did you mean `high`"),
    ({"parameters": {"x": {**X, "low": 2}}}, "`x`: Float: `low < high` must hold"),
    ({"parameters": {"x": {"kind": "float"}}}, "`x`: a marker of the kind float needs `high`, `low`"),
    ({"parameters": {"x": {"kind": "list", "item": X}}}, "`x`: a marker of the kind list needs `length`"),
    ({"parameters": {"x": {**X, "type": "str"}}}, "the type of `x` says str, but Float.0, 1. gives a float"),
    ({"parameters": {"x": {**X, "type": "sys.path"}}}, "`x`: `type` must be a type, such as `int`"),
    ({"parameters": {"x": {**X, "when": {"parameter": "y", "is": 1}}}}, "`x` has the key `is`"),
    ({"parameters": {"x": {**X, "when": {"all": []}}}}, "`x`: `all` must be a list of conditions, but got"),
    ({"parameters": {"x": {**X, "when": {"parameter": "y"}}}}, "`x`: When: `y` is compared with values"),
    ({"parameters": {"x": {**X, "default": {"$tuple": 3}}}}, "`x`: {'.tuple': 3} cannot be read"),
    ({"parameters": {"x": {**X, "default": {"$tupel": []}}}}, "one of .tuple, .* Did you mean `.tuple`"),
    ({"parameters": {"x": {"kind": "class", "class": "builtins:dict"}}}, "`class` must be a dataclass"),
    ({"parameters": {"x": {"default": {"$enum": "enum:Enum.A"}}}}, "cannot be read"),
]


@pytest.mark.parametrize(("data", "message"), FAULTS)
def test_data_that_describes_no_space_is_refused(data, message):
    with pytest.raises(InvalidSpaceError, match=message):
        SearchSpace.from_dict(data)


def test_a_space_of_another_objective_is_refused():
    def train(x: Float(0, 1), model: SVM | Forest) -> float: ...

    with pytest.raises(ArgumentError, match="has no parameter `y`; it has `x`, `model`"):
        SearchSpace.from_dict({"parameters": {"y": X}}, train)
    with pytest.raises(ArgumentError, match="`x` says float, but Category"):
        SearchSpace.from_dict({"parameters": {"x": {"kind": "category", "choices": ["a"]}}}, train)
    fields = {"depht": {}}
    data = {
        "parameters": {
            "model": {"kind": "classes", "classes": {"F": {"class": f"{__name__}:Forest", "fields": fields}}}
        }
    }
    with pytest.raises(InvalidSpaceError, match=r"is a Forest, which has no field `depht`.* Did you mean `depth`"):
        SearchSpace.from_dict(data, train)
    data = {"parameters": {"x": {"kind": "class", "class": f"{__name__}:Forest"}}}
    with pytest.raises(InvalidSpaceError, match="`x` is of the class Forest, but the signature of `train` has no"):
        SearchSpace.from_dict(data, train)


def test_an_argument_outside_its_marker_is_refused():
    data = json.loads(SPACE.bind(n_layers=2).to_json())
    data["arguments"]["n_layers"] = 9
    with pytest.raises(OutOfRangeError, match=re.escape("`n_layers` must lie within its marker Integer(1, 3)")):
        SearchSpace.from_dict(data, everything)
