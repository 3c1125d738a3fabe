"""Reads a function's signature, and resolves annotations that are strings into objects."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast, get_type_hints

from optuna_flyte_dsl.errors import UnresolvedAnnotationError


def read_signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a function or of a callable object, with its annotations as objects.

    `from __future__ import annotations` makes every annotation a string. A name in such a string is looked up in the
    function's globals, in its closure, and in the local variables of the enclosing functions that are still running.
    """
    signature = inspect.signature(function)
    annotated = plain_function(function)
    name = f"`{getattr(function, '__qualname__', None) or repr(function)}`"
    hints = read_hints(annotated, name, local_names(annotated))
    parameters = [
        parameter.replace(annotation=hints.get(name, parameter.annotation))
        for name, parameter in signature.parameters.items()
    ]
    return signature.replace(parameters=parameters, return_annotation=hints.get("return", signature.return_annotation))


def read_hints(annotated: Any, name: str, local_names: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the annotations of a function or class as objects."""
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


def plain_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the plain function behind a callable, whose annotations `inspect.signature` shows."""
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    if inspect.isfunction(function) or inspect.ismethod(function):
        return cast("Callable[..., Any]", inspect.unwrap(getattr(function, "__func__", function)))
    call: Callable[..., Any] = type(function).__call__
    return call if inspect.isfunction(call) else function


def local_names(function: Any) -> Mapping[str, Any]:
    """Return the local names that a nested function sees: those of running enclosing functions, and its closure."""
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
        with contextlib.suppress(ValueError):  # an empty cell: the variable is assigned later
            names[name] = cell.cell_contents
    return names
