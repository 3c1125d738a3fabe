"""A Hypothesis strategy for whole search spaces. Needs the extra `testing`."""

import dataclasses
import enum
import inspect
from typing import Annotated, Any, NamedTuple, Union

from hypothesis import strategies as st

from optuna_flyte_dsl.space.conditions import AllOf, AnyOf, NotThat, When
from optuna_flyte_dsl.space.markers import Category, Float, Integer, Ordinal, Suggestion
from optuna_flyte_dsl.space.priors import Beta, Normal
from optuna_flyte_dsl.space.search_space import SearchSpace

_TEXTS = ("a", "b", "c", "d")


class _Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class _Field(NamedTuple):
    """A parameter, or a field of a class."""

    annotation: Any
    default: Any  # `inspect.Parameter.empty` without a default
    condition: When | None  # a condition on this parameter that holds for some of its values


@st.composite
def spaces(draw: st.DrawFn, *, max_parameters: int = 5, max_depth: int = 2) -> SearchSpace:
    """Draw search spaces: for the tests of tools that read spaces.

    The spaces have numbers, choices, lists, choices that hold markers, dataclasses, choices between dataclasses, fixed
    values, and conditions, one inside the other.

    Args:
        max_parameters: The largest number of parameters of a signature, and of fields of a class.
        max_depth: How deep classes and choices may lie inside each other.

    >>> from hypothesis import given
    >>> from optuna_flyte_dsl.testing import strategies
    >>> @given(spaces())
    ... def test_each_parameter_has_a_distribution(space):
    ...     assert space.distributions().keys() == space.keys()
    >>> test_each_parameter_has_a_distribution()
    """
    return SearchSpace.from_signature(draw(signatures(max_parameters=max_parameters, max_depth=max_depth)))


@st.composite
def signatures(draw: st.DrawFn, *, max_parameters: int = 5, max_depth: int = 2) -> inspect.Signature:
    """Draw signatures of objectives with such spaces; see `spaces`."""
    fields = draw(_fields(max_parameters, max_depth))
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [
            inspect.Parameter(name, kind, annotation=field.annotation, default=field.default)
            for name, field in fields.items()
        ]
    )


@st.composite
def _fields(draw: st.DrawFn, most: int, depth: int) -> dict[str, _Field]:
    fields: dict[str, _Field] = {}
    for index in range(draw(st.integers(1, most))):
        name = f"p{index}"
        extra = draw(st.sampled_from(["none", "none", "fixed", "length"]))
        if extra == "fixed":
            fields[f"fixed{index}"] = _Field(int, index, None)
        elif extra == "length":
            length, low = f"length{index}", draw(st.integers(0, 1))
            marker = Integer(low, low + draw(st.integers(1, 2)))
            fields[length] = _Field(Annotated[int, marker], inspect.Parameter.empty, When(length, gt=low))
            fields[name] = _Field(Annotated[list[float], Float(0, 1) * length], inspect.Parameter.empty, None)
            continue
        earlier = [field.condition for field in fields.values() if field.condition is not None]
        field = draw(_field(name, most, depth))
        depends = draw(st.booleans())
        if earlier and depends:
            chosen = draw(st.lists(st.sampled_from(earlier), min_size=1, max_size=2))
            condition = draw(st.sampled_from([AllOf(tuple(chosen)), AnyOf(tuple(chosen)), NotThat(chosen[0])]))
            field = _Field(Annotated[field.annotation | None, condition], None, None)
        fields[name] = field
    return fields


@st.composite
def _field(draw: st.DrawFn, name: str, most: int, depth: int) -> _Field:
    kinds = ["integer", "category", "float", "stepped", "bool", "enum", "ordinal", "list"]
    if depth:
        kinds += ["class", "classes", "branches"]
    empty = inspect.Parameter.empty
    match draw(st.sampled_from(kinds)):
        case "integer":
            low = draw(st.integers(0, 9))
            prior = draw(st.sampled_from([None, Normal(low, 2.5), Beta(2, 0.5)]))
            marker: Suggestion = Integer(low, low + draw(st.integers(1, 9)), prior=prior)
            return _Field(Annotated[int, marker], empty, When(name, ge=low + 1))
        case "category":
            choices = _TEXTS[: draw(st.integers(2, len(_TEXTS)))]
            weights = draw(st.none() | st.just([index + 0.5 for index in range(len(choices))]))
            return _Field(
                Annotated[str, Category(choices, weights=weights)], empty, When(name, *choices[1:3][: len(choices) - 1])
            )
        case "float":
            low = draw(st.integers(1, 9))
            marker = Float(low, low + draw(st.integers(1, 99)), log=draw(st.booleans()))
            return _Field(Annotated[float, marker], empty, When(name, lt=low + 0.5))
        case "stepped":
            return _Field(
                Annotated[float, Float(0, 1, step=draw(st.sampled_from([0.25, 0.1])))], empty, When(name, gt=0.5)
            )
        case "bool":
            return _Field(Annotated[bool, Category()], empty, When(name, True))
        case "enum":
            return _Field(Annotated[_Size, Category()], empty, When(name, _Size.SMALL))
        case "ordinal":
            sizes = [2**power for power in range(draw(st.integers(2, 5)))]
            return _Field(Annotated[int, Ordinal(sizes)], empty, When(name, gt=1))
        case "list":
            return _Field(Annotated[list[float], Float(0, 1) * draw(st.integers(1, 3))], empty, None)
        case "class":
            return _Field(draw(_class(f"C{name}", most, depth - 1)), empty, None)
        case "classes":
            labels = [f"{each}{name}" for each in "AB"]
            union: Any = Union[tuple(draw(_class(label, most, depth - 1)) for label in labels)]  # noqa: UP007
            return _Field(union, empty, When(name, labels[0]))
    inner = {"s": 3, "t": {"x": Float(0, 1), "y": [Integer(0, 9), 1]}, "u": Category([1, 2])}
    return _Field(Annotated[Any, Category(inner)], empty, When(name, "u"))


@st.composite
def _class(draw: st.DrawFn, name: str, most: int, depth: int) -> type:
    fields = draw(_fields(most, depth))
    made = [
        (field, each.annotation)
        if each.default is inspect.Parameter.empty
        else (field, each.annotation, dataclasses.field(default=each.default))
        for field, each in fields.items()
    ]
    return dataclasses.make_dataclass(name, made, kw_only=True)
