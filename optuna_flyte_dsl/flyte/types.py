"""Makes the markers native Flyte types: `x: Float(0, 1)` is a FLOAT in a task's interface, and in every literal."""

from __future__ import annotations

import asyncio
import operator
from functools import reduce
from typing import Annotated, Any, get_args

from flytekit.core.context_manager import FlyteContext
from flytekit.core.type_engine import AsyncTypeTransformer, TypeEngine, TypeTransformer
from flytekit.models.literals import Literal
from flytekit.models.types import LiteralType

from optuna_flyte_dsl.errors import InvalidMarkerTypeError
from optuna_flyte_dsl.markers import Category, Float, Integer, Suggestion

_NATIVE = (type(None), bool, int, float, str)


def native_type(marker: Suggestion) -> Any:
    """Return the Python type of a marker's values: a class, or a union of some.

    Raises:
        InvalidMarkerTypeError: If the choices of a category have types that Flyte has no literal for.
    """
    if isinstance(marker, type):
        raise InvalidMarkerTypeError(
            f"An annotation is the class {marker.__name__}. Call it, with its bounds, as in `x: Float(0, 1)` or "
            '`x: Category(["a", "b"])`.'
        )
    if isinstance(marker, Float):
        return float
    if isinstance(marker, Integer):
        return int
    assert isinstance(marker, Category)
    kinds: dict[type, None] = {}
    for choice in marker.choices:
        kind = next((native for native in _NATIVE if type(choice) is native), None)
        if kind is None:
            raise InvalidMarkerTypeError(
                f"{marker!r} as an annotation: each choice must be None, a bool, an int, a float or a str, but got "
                f"{choice!r}, of type {type(choice).__name__}. Use names for the choices, and map them in the task."
            )
        kinds[kind] = None
    if kinds.keys() == {type(None)}:
        kinds[str] = None  # flytekit takes None in a union only
    return reduce(operator.or_, kinds)


def spell_out_unions(task: Any) -> None:
    """Write a category of several types beside its types in a task's interface: `Annotated[str | None, Category(...)]`.

    `pyflyte run` takes a union apart by the arguments of its annotation, and a bare marker has none: one such task
    would break the command for its whole file.

    Args:
        task: The task, whose interface is changed. To Flyte, its types stay the same.
    """
    inputs = task.python_interface._inputs
    for name, (annotation, default) in inputs.items():
        if isinstance(annotation, Category) and get_args(native := native_type(annotation)):
            inputs[name] = (Annotated[native, annotation], default)


class MarkerTransformer(AsyncTypeTransformer[Any]):
    """Carries a marker's values as Flyte carries values of its native type."""

    def __init__(self, marker: type[Suggestion]) -> None:
        # No type assertion: flytekit's tests `isinstance(value, annotation)`, and a marker is an instance, no class.
        super().__init__(f"optuna_flyte_dsl {marker.__name__}", marker, enable_type_assertions=False)

    def get_literal_type(self, t: Any) -> LiteralType:
        """Return the literal type of the marker's native type."""
        return TypeEngine.to_literal_type(native_type(t))

    async def async_to_literal(
        self, ctx: FlyteContext, python_val: Any, python_type: Any, expected: LiteralType
    ) -> Literal:
        """Convert a value; an int given for a `Float` becomes a float, as Python would have it."""
        if isinstance(python_type, Float) and isinstance(python_val, int) and not isinstance(python_val, bool):
            python_val = float(python_val)
        transformer: TypeTransformer[Any] = TypeEngine.get_transformer(native_type(python_type))
        if isinstance(transformer, AsyncTypeTransformer):
            literal = await transformer.async_to_literal(ctx, python_val, native_type(python_type), expected)
            return await literal if asyncio.isfuture(literal) else literal
        return transformer.to_literal(ctx, python_val, native_type(python_type), expected)

    async def async_to_python_value(self, ctx: FlyteContext, lv: Literal, expected_python_type: Any) -> Any:
        """Convert a literal to the marker's native type."""
        transformer: TypeTransformer[Any] = TypeEngine.get_transformer(native_type(expected_python_type))
        if isinstance(transformer, AsyncTypeTransformer):
            return await transformer.async_to_python_value(ctx, lv, native_type(expected_python_type))
        return transformer.to_python_value(ctx, lv, native_type(expected_python_type))


def register() -> None:
    """Make the markers known to flytekit; a second call changes nothing."""
    for marker in (Float, Integer, Category):
        TypeEngine.register_additional_type(MarkerTransformer(marker), marker)
