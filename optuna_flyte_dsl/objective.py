"""One `Objective` for every kind of objective: what it takes, what it returns, and whether its outcome is right."""

from __future__ import annotations

import enum
import functools
import inspect
import types
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, Union, get_args, get_origin

import optuna
from optuna.study import StudyDirection

from optuna_flyte_dsl.errors import DirectionError, InvalidObjectiveError, ObjectiveValueError
from optuna_flyte_dsl.flyte.entities import entity_name, entity_signature, ignored_in_cache, is_entity
from optuna_flyte_dsl.signatures import read_hints, read_signature
from optuna_flyte_dsl.space import SearchSpace

TRIAL = "trial"
"""The parameter by which a function, or a task, takes the `optuna.Trial` of its run."""


class Kind(enum.Enum):
    """How an objective is run."""

    ENTITY = "a Flyte entity"
    COROUTINE = "an async function"
    FUNCTION = "a sync function"


@dataclass(frozen=True)
class Returns:
    """What an objective's annotation says of its values.

    Args:
        directions: One for each objective, `None` where the annotation does not say it. `None` for the whole where it
            does not even say how many there are.
        names: The objectives' names, from the fields of a NamedTuple.
    """

    directions: tuple[StudyDirection | None, ...] | None = None
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Objective:
    """What a search minimizes or maximizes.

    Args:
        target: The Flyte entity or the function.
        name: What messages call it.
        kind: How it is run.
        takes_trial: Whether it has a parameter `trial`: a function any, a Flyte entity one of type `optuna.Trial`.
        space: Its parameters and the search space that its signature declares.
        returns: What its return annotation says.
    """

    target: Any
    name: str
    kind: Kind
    takes_trial: bool
    space: SearchSpace
    returns: Returns

    @classmethod
    def of(cls, target: Any) -> Objective:
        """Read an objective.

        Args:
            target: A Flyte task, workflow or launch plan, or a function, sync or async, that takes `trial` or has
                markers in its signature.

        Raises:
            InvalidObjectiveError: If it is none of these, or if what it returns cannot be an objective's value.
        """
        if is_entity(target):
            name = entity_name(target)
            signature = entity_signature(target)
            kind = Kind.ENTITY
            takes_trial = TRIAL in signature.parameters and _is_trial(signature.parameters[TRIAL].annotation)
            if takes_trial and TRIAL in ignored_in_cache(target):
                raise InvalidObjectiveError(
                    f"`{name}` leaves `trial` out of its cache's key, with `cache_ignore_input_vars`. A pruned trial's "
                    "value would be taken for another's. Drop `trial` there."
                )
        elif callable(target) and not isinstance(target, type):
            name = _function_name(target)
            signature = read_signature(target)
            kind = Kind.COROUTINE if _is_async(target) else Kind.FUNCTION
            takes_trial = TRIAL in signature.parameters
        else:
            raise InvalidObjectiveError(
                f"`objective` must be a Flyte task, workflow or launch plan, or a function, but got {target!r}. "
                "Put `@optimize` over `@fl.task`, or over a function."
            )
        for parameter in signature.parameters.values():
            if parameter.name != TRIAL and _is_trial(parameter.annotation):
                raise InvalidObjectiveError(
                    f"`{name}`: the trial must be the parameter `trial`, but it is called `{parameter.name}`. Write "
                    "`trial: optuna.Trial`."
                )
        space = SearchSpace.from_signature(
            signature,
            name=name,
            ignore=frozenset({TRIAL}) if takes_trial else frozenset(),
            strict=kind is Kind.ENTITY,
        )
        if kind is not Kind.ENTITY and not takes_trial and not space:
            raise InvalidObjectiveError(
                f"`{name}` must have a parameter called `trial`, or a marker in its signature, but it has "
                f"{', '.join(f'`{parameter}`' for parameter in signature.parameters) or 'no parameters'}. Write "
                f"`def {name}(trial: optuna.Trial)`, or mark a parameter, as in `x: Float(0, 1)`."
            )
        returns = _read_returns(name, signature.return_annotation, strict=kind is Kind.ENTITY)
        return cls(target, name, kind, takes_trial, space, returns)

    @property
    def samples(self) -> bool:
        """Whether it samples by itself while it runs, so that what it searches is not known before."""
        return self.takes_trial and self.kind is not Kind.ENTITY

    def directions_with(self, given: Sequence[StudyDirection] | None) -> tuple[StudyDirection, ...] | None:
        """Return the directions of the search, from the annotation and those that the user gave beside it.

        Args:
            given: From `direction`, `directions` or a study; `None` where there is none.

        Returns:
            One direction for each objective, or `None` if neither says how many there are.

        Raises:
            DirectionError: If the two contradict each other, or an objective's direction is not known.
        """
        said = self.returns.directions
        if said is None:
            return None if given is None else tuple(given)
        if given is None:
            if len(said) == 1:
                return (said[0] or StudyDirection.MINIMIZE,)
            if None in said:
                raise DirectionError(
                    f"`{self.name}` returns {len(said)} objectives, and the direction of number {said.index(None) + 1} "
                    'is not known. Give a study, or `directions=["minimize", ...]`, or return '
                    "`tuple[Minimize, Maximize]`."
                )
            return tuple(direction for direction in said if direction is not None)
        if len(given) != len(said):
            raise DirectionError(
                f"`{self.name}` returns {_count(len(said))}, but the study has {_count(len(given), 'direction')}: "
                f"{_directions(given)}. Give one direction for each objective."
            )
        for index, (mine, its) in enumerate(zip(said, given, strict=True)):
            if mine is not None and mine is not its:
                raise DirectionError(
                    f"`{self.name}` says {mine.name.lower()} for objective {index + 1}, but the study's direction, or "
                    f"`direction`, says {its.name.lower()}. Let the two agree, or drop one."
                )
        return tuple(given)

    def refusal(self, returned: Any, *, by_flyte: bool = False) -> Exception | None:
        """Return what is wrong with a value that a task returned, as far as the annotation tells; `None` for nothing.

        Args:
            returned: What the task returned.
            by_flyte: Whether Flyte has refused it already; else it is not known what it makes of an int.
        """
        if self.returns.directions is None:
            return None
        count = len(self.returns.directions)
        try:
            self.values(returned, count)
        except ObjectiveValueError as wrong:
            return wrong
        fine = (float,) if by_flyte else (float, int)
        foreign = any(type(value) not in fine for value in (returned if count > 1 else (returned,)))
        return self._wrong_type(returned) if foreign else None

    def _wrong_type(self, returned: Any) -> TypeError:
        several = isinstance(returned, tuple | list)
        shown = ", ".join(
            f"{value!r}, of type {type(value).__name__}" for value in (returned if several else (returned,))
        )
        return TypeError(
            f"`{self.name}` returned {shown}, which Flyte does not take for what its annotation says. Write "
            "`float(...)` around it."
        )

    def values(self, returned: Any, count: int) -> tuple[float, ...]:
        """Return what one run returned as the values of its trial.

        Args:
            returned: A number, or a tuple or list of them.
            count: How many the study has directions for.

        Raises:
            ObjectiveValueError: If there are more or fewer, or one is no number.
        """
        if count == 1 and type(returned) is float:
            return (returned,)
        values = tuple(returned) if isinstance(returned, tuple | list) else (returned,)
        numbers = tuple(_number(value) for value in values)
        if None in numbers:
            raise ObjectiveValueError(
                f"`{self.name}` must return {'a number' if count == 1 else f'a tuple of {count} numbers'}, but it "
                f"returned {returned!r}, of type {type(returned).__name__}. Return a float for each objective."
            )
        if len(numbers) != count:
            raise ObjectiveValueError(
                f"`{self.name}` returned {_count(len(numbers), 'value')}, {returned!r}, but the study has "
                f"{_count(count, 'direction')}. Return one value for each direction, or give as many directions."
            )
        return numbers  # type: ignore[return-value]


def space_of(thing: Any) -> SearchSpace:
    """Return the search space of an objective of any kind, of a decorated one, or the space itself."""
    if isinstance(thing, SearchSpace):
        return thing
    space = getattr(thing, "space", None)
    return space if isinstance(space, SearchSpace) else Objective.of(thing).space


def _is_trial(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, optuna.trial.BaseTrial)


def _number(value: Any) -> float | None:
    if isinstance(value, str | bytes | bytearray):
        return None
    try:
        return float(value)
    except Exception:  # noqa: BLE001 - whatever an object's `__float__` raises, it is no number
        return None


def _function_name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", None) or type(function).__name__)


def _is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _read_returns(name: str, annotation: Any, *, strict: bool) -> Returns:
    """Read a return annotation. Where `strict`, it must say something: Flyte runs nothing without one."""
    if annotation is inspect.Signature.empty or annotation is Any:
        return Returns()
    origin = get_origin(annotation)
    if origin in (Awaitable, Coroutine):
        return _read_returns(name, get_args(annotation)[-1], strict=strict)
    if isinstance(annotation, tuple):
        return Returns(tuple(_direction(name, item, annotation) for item in annotation))
    if isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
        hints = read_hints(annotation, f"`{annotation.__qualname__}`")
        fields: tuple[str, ...] = getattr(annotation, "_fields")  # noqa: B009 - of a NamedTuple
        return Returns(tuple(_direction(name, hints.get(field, Any), annotation) for field in fields), fields)
    if origin is tuple:
        arguments = get_args(annotation)
        if Ellipsis in arguments:
            _refuse_direction(name, arguments[0], annotation)
            return Returns()
        if not arguments or arguments == ((),):
            raise _no_objective(name, annotation)
        return Returns(tuple(_direction(name, item, annotation) for item in arguments))
    if origin in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        if len(members) == 1:
            return _read_returns(name, members[0], strict=strict)
        for member in members:
            _refuse_direction(name, member, annotation)
        return Returns()
    if not strict and not _is_plain(annotation):
        return Returns()
    return Returns((_direction(name, annotation, annotation),))


def _is_plain(annotation: Any) -> bool:
    """Tell whether an annotation says what is returned, not only that something is."""
    return (
        annotation in (None, type(None), bool, str, bytes, dict, list, set)
        or (isinstance(annotation, type) and issubclass(annotation, Real))
        or get_origin(annotation) in (Annotated, dict, list, set)
    )


def _direction(name: str, annotation: Any, whole: Any) -> StudyDirection | None:
    """Return the direction that the annotation of one objective names."""
    extras: list[Any] = []
    while get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        extras += inner
    if annotation is Any:
        return None
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    if not all(isinstance(kind, type) and issubclass(kind, Real) and not issubclass(kind, bool) for kind in kinds):
        raise _no_objective(name, whole)
    found = [extra for extra in extras if isinstance(extra, StudyDirection)]
    if len(found) > 1:
        raise DirectionError(f"`{name}`: an objective has one direction, but its annotation holds {len(found)}.")
    return found[0] if found else None


def _refuse_direction(name: str, annotation: Any, whole: Any) -> None:
    """Refuse a direction where it is not known which objective it is for."""
    plain = not isinstance(annotation, type) or not issubclass(annotation, tuple)
    if plain and get_origin(annotation) is not tuple and _direction(name, annotation, whole) is not None:
        raise DirectionError(
            f"`{name}`: its annotation `{whole}` names a direction, but not how many objectives there are. Return "
            "`Maximize`, or `tuple[Maximize, Minimize]`, or give `directions=[...]`."
        )


def _no_objective(name: str, annotation: Any) -> InvalidObjectiveError:
    shown = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return InvalidObjectiveError(
        f"`{name}` must return a float, or a tuple of floats, but its annotation says `{shown}`. "
        "Return `float`, `Minimize`, `Maximize`, or `tuple[Maximize, Minimize]`."
    )


def _count(number: int, noun: str = "objective") -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _directions(directions: Sequence[StudyDirection]) -> str:
    return ", ".join(direction.name.lower() for direction in directions)
