"""Metaclasses that raise this library's errors for wrong calls of markers, instead of Python's TypeError."""

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from optuna_flyte_dsl._text import nearest
from optuna_flyte_dsl.errors import InvalidMarkerTypeError

_SYNONYMS = {"min": "low", "lower": "low", "max": "high", "upper": "high", "q": "step", "values": "choices"}
"""Names that other libraries have for the arguments of markers."""

_PRIORS = {"Normal": "Normal(0.3, 0.1)", "Beta": "Beta(2, 5)"}

_WORDS = {"int": "integer", "cat": "category", "choice": "category", "uniform": "float", "float": "float"}
"""Words in the names that other libraries have for markers."""


def _message(cls: type, wrong: str, given: Iterable[str]) -> str:
    """Return the message of a wrong call of a marker; the first unknown name among the given ones is the cause."""
    known = list(inspect.signature(cls.__init__).parameters)[1:]  # type: ignore[misc]  # of this very class
    example = f'{cls.__name__}(["a", "b"])' if "choices" in known else f"{cls.__name__}(0, 1)"
    if "parameter" in known:
        example = 'When("kernel", "rbf")'
    if "function" in known:
        example = "WhenTrue(lambda depth, width: depth * width > 64)"
    if cls.__name__ in _PRIORS:
        example = _PRIORS[cls.__name__]
    unknown = next((name for name in given if name not in known), None)
    meant = _SYNONYMS.get(unknown or "")
    if unknown is not None and (near := meant if meant in known else nearest(unknown, known)):
        return f"{cls.__name__} has no `{unknown}`. Did you mean `{near}`? Write it as in `{example}`."
    return f"{cls.__name__}: {wrong}. Write it as in `{example}`."


class CheckedCall(type):
    """Metaclass of markers: a wrong number of arguments, or a wrong name, raises an error of this library."""

    if not TYPE_CHECKING:

        @property
        def __signature__(cls) -> inspect.Signature:
            """The signature that `help`, editors and `inspect.signature` show."""
            signature = inspect.signature(cls.__init__)
            parameters = list(signature.parameters.values())[1:]
            return signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            """Make a marker."""
            try:
                return super().__call__(*args, **kwargs)
            except TypeError as error:
                try:
                    inspect.signature(cls.__init__).bind(cls, *args, **kwargs)
                except TypeError as wrong:
                    raise InvalidMarkerTypeError(_message(cls, str(wrong), kwargs)) from None
                raise error


class MarkerNames(type):
    """Metaclass of `suggest`: for a name that Optuna uses, the error says this library's name."""

    if not TYPE_CHECKING:

        def __getattr__(cls, name: str) -> Any:
            meant = next((each for word, each in _WORDS.items() if word in name.lower()), "")
            log = "(..., log=True)" if meant == "float" and "log" in name else ""
            cure = f"Write `suggest.{meant}{log}`." if meant else "It has `float`, `integer` and `category`."
            raise AttributeError(f"`suggest` has no `{name}`. {cure}")
