"""Reads a function's signature, with every annotation as an object, also where the source had a string."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast, get_type_hints

from optuna_flyte_dsl.errors import UnresolvedAnnotationError


def read_signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a function or of a callable object, its annotations resolved.

    A string annotation, as `from __future__ import annotations` makes them, is resolved among the function's globals,
    what it closes over, and the local names of the functions around it that are still running.

    Args:
        function: The function, or an object with `__call__`.

    Raises:
        UnresolvedAnnotationError: If a name in an annotation cannot be found.
    """
    signature = inspect.signature(function)
    annotated = _annotated(function)
    hints = read_hints(annotated, _describe(function), _local_names(annotated))
    parameters = [
        parameter.replace(annotation=hints.get(name, parameter.annotation))
        for name, parameter in signature.parameters.items()
    ]
    return signature.replace(
        parameters=parameters,
        return_annotation=hints.get("return", signature.return_annotation),
    )


def read_hints(annotated: Any, name: str, local_names: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the annotations of a function or class as objects.

    Args:
        annotated: The function or class.
        name: What messages call it.
        local_names: Names around it, besides the globals of its module.

    Raises:
        UnresolvedAnnotationError: If a name in an annotation cannot be found, or one is no expression.
    """
    try:
        return get_type_hints(annotated, localns=local_names, include_extras=True)
    except NameError as error:
        unknown = getattr(error, "name", None) or str(error)
        raise UnresolvedAnnotationError(
            f"The name {unknown!r}, in an annotation of {name}, cannot be found. Import it or define it at the top of "
            "the module (not under `if TYPE_CHECKING`), or apply `optimize` inside the function that defines it."
        ) from error
    except (AttributeError, SyntaxError) as error:
        raise UnresolvedAnnotationError(f"An annotation of {name} cannot be read: {error}. Correct it.") from error


def _annotated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the plain function whose annotations `inspect.signature` shows."""
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    if inspect.isfunction(function) or inspect.ismethod(function):
        return cast("Callable[..., Any]", inspect.unwrap(getattr(function, "__func__", function)))
    call: Callable[..., Any] = type(function).__call__
    return call if inspect.isfunction(call) else function


def _local_names(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the names around a nested function: those of the running functions that enclose it, and its closure."""
    qualname = getattr(function, "__qualname__", "")
    enclosing = {part.rsplit(".", 1)[-1] for part in qualname.split(".<locals>")[:-1]}
    names: dict[str, Any] = {}
    frame = sys._getframe(2)
    module = getattr(function, "__module__", None)
    frames = []
    while frame is not None:
        if frame.f_globals.get("__name__") == module and frame.f_code.co_name in enclosing:
            frames.append(frame)
        frame = frame.f_back  # type: ignore[assignment]
    for outer in reversed(frames):
        names.update(outer.f_locals)
    code = getattr(function, "__code__", None)
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True) if code is not None else ()
    for name, cell in cells:
        with contextlib.suppress(ValueError):  # an empty cell: the name is assigned later
            names[name] = cell.cell_contents
    return names


def _describe(function: Callable[..., Any]) -> str:
    return f"`{getattr(function, '__qualname__', None) or repr(function)}`"
