"""Makes markers, trials and studies native types of flytekit: `x: Float(0, 1)` is a FLOAT in a task's interface."""

import asyncio
import contextlib
import enum
import functools
import inspect
import json
import operator
import types
import typing
import weakref
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import optuna
from flytekit.core.context_manager import FlyteContext
from flytekit.core.type_engine import AsyncTypeTransformer, TypeEngine, TypeTransformer
from flytekit.models.literals import Literal
from flytekit.models.types import LiteralType
from optuna.trial import BaseTrial, FrozenTrial, Trial

from optuna_flyte_dsl._compat.flytekit import find_transformer_first, function_that_becomes_a_task, interface_inputs
from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.engines._flytekit.bundle_types import bundle_transformer
from optuna_flyte_dsl.engines._flytekit.study_type import StudyTransformer
from optuna_flyte_dsl.engines._flytekit.trial_types import TrialTransformer
from optuna_flyte_dsl.errors import InvalidMarkerTypeError
from optuna_flyte_dsl.space.annotations import place_of_annotation, read_annotation
from optuna_flyte_dsl.space.conversion import to_float, value_types
from optuna_flyte_dsl.space.domain import is_composite
from optuna_flyte_dsl.space.markers import Category, Float, Integer, Ordinal, Repeated, Suggestion
from optuna_flyte_dsl.space.search_space import SearchSpace

_NO_PLACE = "An annotation"
_NATIVE_TYPES = (type(None), bool, int, float, str)


def native_type(annotation: Any) -> Any:
    """Return the Python type in which Flyte carries the values of a marker: a class, or a union of classes.

    Values that have names are carried by their names, unless they belong to an Enum that Flyte has a type for.
    """
    marker = _marker_in(annotation)
    if isinstance(marker, type):
        raise InvalidMarkerTypeError(
            f"{_where(annotation)} is the class {marker.__name__}. Call it, with its bounds, as in `x: Float(0, 1)` or "
            '`x: Category(["a", "b"])`.'
        )
    if not marker.is_complete:
        raise InvalidMarkerTypeError(
            f"{_where(annotation)} is `{marker!r}`, without a type beside it. Write `x: Float(0, 1)`, or a type that "
            'has the bounds or the choices, as in `x: Annotated[Literal["a", "b"], Category()]`.'
        )
    if isinstance(marker, Repeated):
        item = native_type(marker.item)
        return list[marker.item if is_carried_by_name(_item_of(marker), str) else item]  # type: ignore[misc]
    if is_composite(marker):
        _space_of(marker)  # raises an error if the choices cannot be carried
        _check_choices(marker)
        return str
    kinds = value_types(marker)
    if isinstance(marker, Category) and marker.names is not None:
        _check_choices(marker)
        is_flyte_enum = issubclass(kinds[0], enum.Enum) and all(isinstance(each.value, str) for each in kinds[0])
        return kinds[0] if len(kinds) == 1 and is_flyte_enum else str
    for kind in kinds:
        if kind not in _NATIVE_TYPES:
            assert isinstance(marker, Category)
            choice = next(choice for choice in marker.choices if type(choice) is kind)
            raise InvalidMarkerTypeError(
                f"{shown(marker)} as an annotation: each choice must be None, a bool, an int, a float or a str, but "
                f"got {shown(choice)}, of type {kind.__name__}. Give the choices names, as in `Category({{...}})`."
            )
    if kinds == (type(None),):
        kinds = (type(None), str)  # flytekit accepts None in a union only
    return functools.reduce(operator.or_, kinds)


def _check_choices(marker: Category) -> None:
    """Check that each choice can be the argument of a task."""
    if wrong := [choice for choice in marker.choices if choice is None or isinstance(choice, tuple)]:
        raise InvalidMarkerTypeError(
            f"{shown(marker)} as an annotation: a task takes neither None nor a tuple as a value, but a choice is "
            f"{shown(wrong[0])}. Use a list, or a str that stands for the choice in the task."
        )


def spell_out_types(task: Any, task_name: str) -> None:
    """Replace annotations in a task's interface that `pyflyte run` cannot read.

    `pyflyte run` reads the members of a union from the annotation's arguments, and those of an Enum from the annotation
    itself. A bare marker has none. One task with such an annotation would break `pyflyte run` for its whole file.
    """
    inputs = interface_inputs(task)

    for name, (annotation, default) in inputs.items():
        plain = _without_enum_markers(annotation)
        if plain is not annotation:
            _replaced.setdefault(task, {})[name] = annotation
            inputs[name] = (plain, default)
        elif isinstance(annotation, Category) and get_args(native := native_type(annotation)):
            inputs[name] = (Annotated[native, annotation], default)
        elif (
            _is_branching(marker := _marker_in(annotation, place_of_annotation(task_name, name)))
            and default is not None
        ):
            inputs[name] = (annotation, _to_text(marker, default))  # click would make another text of the default
        elif callable(default) and is_carried_by_name(marker, str):
            inputs[name] = (annotation, marker.names[marker.index(default)])  # click would call the default


_replaced: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()  # by task: the annotations


def declared_types(task: Any) -> Mapping[str, Any]:
    """Return the annotations that a task's interface no longer has, by parameter: they have the markers."""
    return _replaced.get(task, {})


def _without_enum_markers(annotation: Any) -> Any:
    """Return an annotation with the Enum itself in the place of each marker whose values Flyte carries as that Enum."""
    if get_origin(annotation) in (Union, types.UnionType):
        members = get_args(annotation)
        plain = tuple(map(_without_enum_markers, members))
        return annotation if all(map(operator.is_, plain, members)) else Union[plain]  # noqa: UP007
    parts = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if not any(isinstance(each, Category) for each in parts):
        return annotation
    native = native_type(annotation)
    if not (isinstance(native, type) and issubclass(native, enum.Enum)):
        return annotation
    return parts[0] if get_origin(parts[0]) in (Union, types.UnionType) else native


class MarkerTransformer(AsyncTypeTransformer[Any]):
    """Converts a marker's values as flytekit converts values of the marker's native type."""

    def __init__(self, marker: type[Suggestion]) -> None:
        # The transformer makes no type assertions, because `isinstance(value, annotation)` fails: a marker is not a
        # class.
        super().__init__(f"optuna_flyte_dsl {marker.__name__}", marker, enable_type_assertions=False)

    def get_literal_type(self, t: Any) -> LiteralType:
        return TypeEngine.to_literal_type(native_type(t))

    async def async_to_literal(
        self, ctx: FlyteContext, python_val: Any, python_type: Any, expected: LiteralType
    ) -> Literal:
        """Convert a value to a literal. An int for a `Float` becomes a float, as in Python."""
        native = native_type(python_type)
        marker = _marker_in(python_type)
        if is_carried_by_name(marker, native):
            python_val = _to_text(marker, python_val)
        python_val = to_float(native, python_val)
        transformer: TypeTransformer[Any] = TypeEngine.get_transformer(native)
        if isinstance(transformer, AsyncTypeTransformer):
            literal = await transformer.async_to_literal(ctx, python_val, native, expected)
            return await literal if asyncio.isfuture(literal) else literal
        return transformer.to_literal(ctx, python_val, native, expected)

    async def async_to_python_value(self, ctx: FlyteContext, lv: Literal, expected_python_type: Any) -> Any:
        native = native_type(expected_python_type)
        transformer: TypeTransformer[Any] = TypeEngine.get_transformer(native)
        if isinstance(transformer, AsyncTypeTransformer):
            value = await transformer.async_to_python_value(ctx, lv, native)
        else:
            value = transformer.to_python_value(ctx, lv, native)
        marker = _marker_in(expected_python_type)
        return _from_text(marker, str(value)) if is_carried_by_name(marker, native) else value


def _marker_in(annotation: Any, where: str = _NO_PLACE) -> Any:
    """Return the marker of an annotation, which is the marker or an `Annotated` with it."""
    return read_annotation(where, annotation).marker if get_origin(annotation) is Annotated else annotation


def _where(annotation: Any) -> str:
    """Return which annotation of which function flytekit reads, for an error."""
    function: Any = function_that_becomes_a_task()
    with contextlib.suppress(Exception):  # an annotation may name what is not there
        for name, each in get_type_hints(function, include_extras=True).items():
            if each is annotation or each == annotation:
                return place_of_annotation(function.__name__, name)
    return _NO_PLACE


def _is_branching(marker: Any) -> bool:
    return isinstance(marker, Category) and marker.holds_markers


def is_carried_by_name(marker: Any, native: Any) -> bool:
    """Return whether Flyte gets a text that stands for a value: a name, or the parameters inside a choice."""
    return isinstance(marker, Category) and (marker.names is not None or marker.holds_markers) and native is str


def _to_text(marker: Category, value: Any) -> str:
    """Return the text by which Flyte carries a choice: its name; or, as JSON, the parameters inside the choice."""
    if marker.holds_markers:
        space = _space_of(marker)
        if isinstance(value, str) and value.startswith("{"):  # a user of `pyflyte run` has written the text
            with contextlib.suppress(ValueError):
                value = space.fill(json.loads(value))[_VALUE]
        if not space.contains({_VALUE: value}):
            raise InvalidMarkerTypeError(
                f"{shown(value)} is no choice of {shown(marker)}. For `pyflyte run`, write the choice and the "
                'parameters inside it as JSON, as in \'{"value": "a", "value.a.x": 0.5}\'.'
            )
        return json.dumps(space.point({_VALUE: value}))
    assert marker.names is not None
    return marker.names[marker.index(marker.named(value))]


def _from_text(marker: Category, text: str) -> Any:
    if marker.holds_markers:
        return _space_of(marker).fill(json.loads(text))[_VALUE]
    assert marker.names is not None
    return marker.choices[marker.names.index(text)]


def _item_of(marker: Suggestion) -> Suggestion:
    """Return the marker of the items of a repeated marker; return any other marker as it is."""
    return _item_of(marker.item) if isinstance(marker, Repeated) else marker


_VALUE = "value"


@functools.lru_cache(maxsize=256)
def _space_of(marker: Category) -> SearchSpace:
    """Return the space of the parameters inside the choices of a marker.

    Raises:
        InvalidMarkerTypeError: If Flyte cannot carry what Optuna stores for one of the parameters.
    """
    parameter = inspect.Parameter(_VALUE, inspect.Parameter.KEYWORD_ONLY, annotation=marker)
    space = SearchSpace.from_signature(inspect.Signature([parameter]), name=shown(marker))
    for inner in space.values():
        native_type(inner.stored)
    return space


def _transformer_of(annotation: Any) -> TypeTransformer[Any] | None:
    """Return the transformer of an annotation whose marker flytekit itself would not look at.

    Flytekit refuses an annotated Enum or Literal, and would pickle choices that have names.
    """
    if (transformer := bundle_transformer(annotation)) is not None:
        return transformer
    if get_origin(annotation) is not Annotated:
        return None
    base, *metadata = get_args(annotation)
    is_refused = get_origin(base) is typing.Literal or (isinstance(base, type) and issubclass(base, enum.Enum))
    for marker in [each for each in metadata if isinstance(each, Category | Repeated)]:
        if is_refused or is_carried_by_name(_item_of(marker), str):
            return TypeEngine.get_transformer(type(marker))
    return None


def register(_flytekit: Any = None) -> None:
    """Register the types of markers, trials and studies with flytekit. A second call changes nothing."""
    _register()


@functools.cache  # once
def _register() -> None:
    find_transformer_first(_transformer_of)
    for marker in (Float, Integer, Category, Ordinal, Repeated):
        TypeEngine.register_additional_type(MarkerTransformer(marker), marker)
    for kind in (Trial, BaseTrial, optuna.trial.FixedTrial, FrozenTrial):
        TypeEngine.register_additional_type(TrialTransformer(kind), kind)
    TypeEngine.register_additional_type(StudyTransformer(), optuna.Study)
