"""Metaclasses that raise this library's errors for wrong calls of markers, instead of Python's TypeError."""

import inspect
from typing import TYPE_CHECKING, Any

from optuna_flyte_dsl.errors import InvalidMarkerTypeError


class CheckedCall(type):
    """Metaclass of markers: a wrong number of arguments, or a wrong name, raises an error of this library."""

    if not TYPE_CHECKING:

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            """Make a marker."""
            try:
                return super().__call__(*args, **kwargs)
            except TypeError as error:
                try:
                    inspect.signature(cls.__init__).bind(cls, *args, **kwargs)
                except TypeError as wrong:
                    example = 'Category(["a", "b"])' if cls.__name__ == "Category" else f"{cls.__name__}(0, 1)"
                    raise InvalidMarkerTypeError(f"{cls.__name__}: {wrong}. Write it as in `{example}`.") from None
                raise error


class MarkerNames(type):
    """Metaclass of `suggest`: for a name that Optuna uses, the error says this library's name."""

    if not TYPE_CHECKING:

        def __getattr__(cls, name: str) -> Any:
            known = {"int": "integer", "categorical": "category", "uniform": "float"}
            cure = f"Write `suggest.{known[name]}`." if name in known else "It has `float`, `integer` and `category`."
            raise AttributeError(f"`suggest` has no `{name}`. {cure}")
