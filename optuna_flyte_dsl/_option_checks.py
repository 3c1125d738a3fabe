"""The checks of single options. A check takes an option's name and value, and returns the value to store.

A check that fails raises `InvalidOptionError`, with the option's name, the rule, the value and the cure.
"""

import inspect
import math
import operator
import os
import pathlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from numbers import Real
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from optuna_flyte_dsl._text import is_storable_name, nearest, shown
from optuna_flyte_dsl.errors import InvalidOptionError

Check = Callable[[str, Any], Any]
_LONGEST_NAME = 240  # bytes of a file's name: most file systems have 255, and other files get its name with a suffix
_DATABASE_SUFFIXES = (".db", ".sqlite", ".sqlite3")


def must(
    rule: str,
    accepts: Callable[[Any], bool],
    *,
    convert: Callable[[Any], Any] = lambda value: value,
    cure: str | Callable[[Any], str] = "",
) -> Check:
    """Return a check that refuses values which break a rule.

    Args:
        rule: The rule in the message, after "must", such as "be an integer".
        accepts: Tells whether a value keeps the rule.
        convert: Converts an accepted value to the value that the check returns.
        cure: A sentence of the message that says what to write instead, or a function of the value that returns one.
    """

    def check(name: str, value: Any) -> Any:
        if not accepts(value):
            said = cure if isinstance(cure, str) else cure(value)
            raise InvalidOptionError(f"`{name}` must {rule}, but got {shown(value)}.{said and ' '}{said}")
        return convert(value)

    return check


def optional(check: Check) -> Check:
    """Return a check that also accepts `None`."""
    return lambda name, value: None if value is None else check(name, value)


def _or_empty(check: Check) -> Check:
    return lambda name, value: () if value is None else check(name, value)


def one_of(shown: str, *choices: str) -> Check:
    """Return a check for one of several strings, which the message lists as `shown`."""

    def cure(value: Any) -> str:
        near = nearest(value, choices) if isinstance(value, str) else None
        return f"Did you mean {near!r}?" if near is not None else ""

    return must(f"be {shown}", lambda value: isinstance(value, str) and value in choices, cure=cure)


def maker_of(kind: type, example: str) -> Check:
    """Return a check for `None`, an instance of a class of Optuna, or a callable that returns such an instance."""

    def check(name: str, value: Any) -> Any:
        if isinstance(value, type) and not issubclass(value, kind):
            raise InvalidOptionError(f"`{name}` must be a {name} of Optuna's, but got the class {shown(value)}.")
        if not isinstance(value, kind) and (needed := _needed_by(value)):
            raise InvalidOptionError(
                f"`{name}`: {shown(value)} is called without arguments, but needs {', '.join(needed)}. Give a {name} "
                f"that is made, as in `{name}={getattr(value, '__name__', 'make')}(...)`."
            )
        rule, cure = f"be a {name} of Optuna's, or a function that makes one", f"Write `{name}={example}`."
        return must(rule, lambda value: isinstance(value, kind) or callable(value), cure=cure)(name, value)

    return optional(check)


def _needed_by(factory: Any) -> list[str]:
    """Return the parameters without which a class or a function cannot be called, but for those that a search gives."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # it is not callable, or written in C
        return []
    return [
        f"`{each.name}`"
        for each in parameters
        if each.default is each.empty
        and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        and each.name not in ("seed", "constraints_func")
    ]


def sampler(name: str, value: Any) -> Any:
    """Check a sampler, a callable that makes one, or "auto", which is stored as `None`: the user gives no sampler."""
    if isinstance(value, str):
        if value == "auto":
            return None
        kinds = {each.lower().removesuffix("sampler"): each for each in reversed(optuna.samplers.__all__)}
        kind = kinds.get(re.sub(r"[\W_]", "", value.lower()).removesuffix("sampler"), "TPESampler")
        raise InvalidOptionError(
            f'`{name}` must be "auto", a sampler of Optuna\'s, or a function that makes one, but got {shown(value)}. '
            f'Write `{name}="auto"`, or `{name}=optuna.samplers.{kind}`.'
        )
    return maker_of(BaseSampler, "optuna.samplers.TPESampler")(name, value)


def is_integer(value: Any, low: float = 1, high: float = math.inf) -> bool:
    """Return whether a value is an integer from `low` to `high`. A numpy integer counts; a bool does not."""
    try:
        return not isinstance(value, bool) and low <= operator.index(value) <= high
    except TypeError:  # it is no integer
        return False


def is_seconds(value: Any) -> bool:
    """Return whether a value is a number of seconds, 0 or more, and not longer than a thread can wait."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) <= threading.TIMEOUT_MAX
    except OverflowError:  # of an integer that is no float
        return False


def is_seed(value: Any) -> bool:
    """Return whether a value is an integer that numpy takes for a seed."""
    return is_integer(value, 0, 2**32 - 1)


def is_string_map(value: Any) -> bool:
    """Return whether a value maps strings to strings."""
    return isinstance(value, Mapping) and all(isinstance(each, str) for pair in value.items() for each in pair)


def _is_list(value: Any, accepts: Callable[[Any], bool]) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(map(accepts, value))


def _to_seconds(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value


count = must("be an integer greater than 0", is_integer, convert=operator.index)
count_or_zero = must("be an integer 0 or greater", lambda value: is_integer(value, 0), convert=operator.index)
flag = must("be True or False", lambda value: isinstance(value, bool))
delay = must("be a number of seconds, 0 or more", is_seconds, convert=float)
seconds = optional(
    must(
        "be a number of seconds above 0, or a timedelta",
        lambda value: is_seconds(_to_seconds(value)) and _to_seconds(value) > 0,
        convert=lambda value: float(_to_seconds(value)),
    )
)
seed = optional(must("be an integer from 0 to 2**32 - 1", is_seed, convert=operator.index))
study = optional(
    must(
        "be an optuna.Study, or a function that makes one",
        lambda value: isinstance(value, optuna.Study) or (callable(value) and not isinstance(value, type)),
        cure="Write `study=optuna.create_study(...)`.",
    )
)
_string = must("be a string", lambda value: isinstance(value, str))
_storable = must("have 1 to 512 characters, none of them NUL or a lone surrogate", is_storable_name)
study_name = optional(lambda name, value: _storable(name, _string(name, value)))
catch = must(
    "be an exception class, or a tuple of them",
    lambda value: _is_list(
        value if not isinstance(value, type) else (value,),
        lambda kind: isinstance(kind, type) and issubclass(kind, BaseException),
    ),
    convert=lambda value: (value,) if isinstance(value, type) else tuple(value),
    cure="Write `catch=(ValueError,)`.",
)
gpus = optional(
    must(
        "be a list of devices, as CUDA_VISIBLE_DEVICES names them",
        lambda value: _is_list(value, lambda gpu: isinstance(gpu, int | str) and not isinstance(gpu, bool)) and value,
        convert=tuple,
        cure="Write `gpus=[0, 1]`.",
    )
)
initial_points = _or_empty(
    must(
        "be a list of dicts, such as [{'x': 0.5}]",
        lambda value: _is_list(value, lambda point: isinstance(point, Mapping)),
        convert=lambda value: tuple(dict(point) for point in value),
    )
)


def _functions_that(take: str, cure: str) -> Check:
    """Return a check for `None`, or a list of functions."""
    return _or_empty(
        must(f"be a list of functions {take}", lambda value: _is_list(value, callable), convert=tuple, cure=cure)
    )


_functions = _functions_that("that take a study and a trial", "Write `callbacks=[function]`.")
constraints = _functions_that(
    "of the objective's arguments", "Write `constraints=[lambda depth, width: depth * width - 4096]`."
)


def failures(name: str, value: Any) -> Any:
    """Check for "auto", `None` or an integer above 0."""
    return value if value is None or value == "auto" else count(name, value)


def callbacks(name: str, value: Any) -> tuple[Any, ...]:
    """Check for `None`, or a list of sync functions of a study and a trial."""
    functions: tuple[Any, ...] = _functions(name, value)
    for function in functions:
        try:
            inspect.signature(function).bind("study", "trial")
        except TypeError as error:
            raise InvalidOptionError(
                f"Each of `{name}` must take a study and a trial, but {shown(function)} does not: {error}. Write "
                "`def callback(study, trial)`."
            ) from None
        except ValueError:  # the signature of a function in C may be unknown
            pass
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
            raise InvalidOptionError(
                f"Each of `{name}` must be a sync function, but {shown(function)} is async, and nobody would await it. "
                "Make it a plain `def`: callbacks run in a thread, and may block."
            )
    return functions


def storage(name: str, value: Any) -> Any:
    """Check that a value may be a storage, without opening it. Messages quote no URL, which may hold a password."""
    if value is not None and not isinstance(value, str | os.PathLike | BaseStorage) and not callable(value):
        raise InvalidOptionError(
            f"`{name}` must be a URL such as 'sqlite:///study.db', the path of a journal file, a storage of Optuna's, "
            f"or a function that makes one, but got a {type(value).__name__}."
        )
    if isinstance(value, type):
        raise InvalidOptionError(f"`{name}` must be a storage of Optuna's, but got the class {value.__name__}.")
    if isinstance(value, str):
        _check_url(name, value)
    if isinstance(value, str | os.PathLike) and "://" not in str(value):
        path = pathlib.Path(value)
        if "\0" in str(path) or len(os.fsencode(path.name)) > _LONGEST_NAME:
            raise InvalidOptionError(
                f"`{name}`: {shown(str(path))} cannot be the path of a journal file, whose name has at most "
                f"{_LONGEST_NAME} bytes, none of them zero."
            )
        if re.match(r"[\w+]{2,}:/", str(path)):  # `Path` turns the two slashes of a URL into one
            raise InvalidOptionError(f"`{name}` is a path that begins as a URL does. Give a URL as a string.")
        if path.suffix in _DATABASE_SUFFIXES and not path.exists():
            raise InvalidOptionError(
                f"`{name}`: {str(path)!r} is the path of a journal file, but has the name of a database. For SQLite, "
                f"write {f'sqlite:///{path}'!r}; for a journal, another name, as in 'search.journal'."
            )
    return value


def warm_start(name: str, value: Any) -> Any:
    """Check that a value may be a study or a storage, or a list of such."""
    given = value if isinstance(value, list | tuple) else [value]
    for each in given:
        if not isinstance(each, optuna.Study):
            if each is None:
                raise InvalidOptionError(f"`{name}` must be a study or a storage, or a list of such, but got None.")
            storage(name, each)
    return value


def _check_url(name: str, value: str) -> None:
    if not value.strip():
        raise InvalidOptionError(f"`{name}` must be a URL or the path of a journal file, but got an empty string.")
    if re.search(r"(^|\s)(host|hostaddr|dbname|user|password)\s*=", value, re.IGNORECASE):
        raise InvalidOptionError(
            f"`{name}` looks like a connection string of libpq. Write it as a URL, as in "
            "'postgresql+psycopg://user:password@host/name'."
        )
    if value.startswith("sqlite") and re.search(":memory:|mode=memory", value):
        raise InvalidOptionError(
            f"`{name}` is a SQLite database in memory, which each thread would have for itself. Drop `{name}` for a "
            "study in memory, or name a file, as in 'sqlite:///search.db'."
        )
    if value.count("://") > 1:
        raise InvalidOptionError(f"`{name}` has '://' twice: two URLs in one. Leave out one of them, as 'sqlite:///'.")
    if value.partition("://")[2].count("@") > 1 and not value.startswith("sqlite"):
        raise InvalidOptionError(f"`{name}`: the user name or the password contains '@'. Write it as '%40' there.")
    if re.match(r"sqlite(\+\w+)?:(?!///)", value):
        raise InvalidOptionError(
            f"`{name}` must have three slashes and a path if it is a SQLite file: 'sqlite:///search.db'; four slashes "
            "begin a path from the root."
        )
    if "://" not in value and re.match(r"[\w+]+:/|(//)?[^/]*@", value):
        raise InvalidOptionError(
            f"`{name}` looks like a URL, but has no '://'. Write it as in 'postgresql+psycopg://user:password@host/name'."
        )
    if value.startswith("postgres:"):
        raise InvalidOptionError(
            f"`{name}` begins with 'postgres:', but SQLAlchemy calls it 'postgresql'. Write 'postgresql+psycopg://...'."
        )
