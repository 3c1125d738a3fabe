"""The directions of objectives: read from options and from return annotations, merged, and shown in messages."""

import dataclasses
import inspect
import types
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from numbers import Real
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

from optuna.study import StudyDirection

from optuna_flyte_dsl._record import record
from optuna_flyte_dsl._text import counted, shown
from optuna_flyte_dsl.errors import DirectionError, InvalidObjectiveError, InvalidOptionError
from optuna_flyte_dsl.space.markers import Role, Suggestion
from optuna_flyte_dsl.space.signatures import read_hints

Direction: TypeAlias = str | StudyDirection
"""A direction as a user writes it: "minimize", "maximize", or Optuna's `StudyDirection`."""

_NO_TYPES = (StudyDirection, Real, Suggestion, list, dict, set)
"""The classes of objects that a user may write as a return annotation, and that are no types."""


def read_directions(
    direction: Direction | None, directions: Sequence[Direction] | None
) -> tuple[StudyDirection, ...] | None:
    """Return the directions that the options `direction` and `directions` give; `None` if neither is given."""
    if direction is not None and directions is not None:
        raise InvalidOptionError(
            f"Give `direction` or `directions`, not both: got {shown(direction)} and {shown(directions)}. "
            "`direction` is for one objective, `directions` for several."
        )
    if direction is not None:
        if not isinstance(direction, str | StudyDirection):
            raise InvalidOptionError(
                f'`direction` must be "minimize" or "maximize", but got {shown(direction)}. '
                "For several objectives, write `directions=[...]`."
            )
        return (_read_direction(direction),)
    if directions is None:
        return None
    if isinstance(directions, str) or not isinstance(directions, Sequence) or not directions:
        raise InvalidOptionError(
            f"`directions` must be a list with a direction for each objective, but got {shown(directions)}. "
            'Write `directions=["maximize", "minimize"]`.'
        )
    return tuple(_read_direction(each) for each in directions)


def merge_directions(
    name: str, annotated: Sequence[StudyDirection | None] | None, given: Sequence[StudyDirection] | None
) -> tuple[StudyDirection, ...] | None:
    """Return the directions of a search from the return annotation and from the options, which may both name them.

    Args:
        annotated: One item for each objective of the return annotation, `None` where the annotation names no
            direction. The value is `None` if the annotation does not say how many objectives the task or function has.
        given: The directions of the options, or of a study; `None` if neither gives directions.

    Returns:
        One direction for each objective, or `None` if the number of objectives is not known.
    """
    if annotated is None:
        return None if given is None else tuple(given)
    if given is None:
        if len(annotated) == 1:
            return (annotated[0] or StudyDirection.MINIMIZE,)
        if None in annotated:
            raise DirectionError(
                f"`{name}` returns {len(annotated)} objectives, and the direction of number "
                f'{annotated.index(None) + 1} is not known. Give a study, or `directions=["minimize", ...]`, or return '
                "`tuple[Minimize, Maximize]`."
            )
        return tuple(direction for direction in annotated if direction is not None)
    if len(given) != len(annotated):
        raise DirectionError(
            f"`{name}` returns {counted(len(annotated), 'objective')}, but the study has "
            f"{counted(len(given), 'direction')}: {direction_names(given)}. Give one direction for each objective."
        )
    for index, (mine, its) in enumerate(zip(annotated, given, strict=True)):
        if mine is not None and mine is not its:
            raise DirectionError(
                f"`{name}` says {mine.name.lower()} for objective {index + 1}, but the study's direction, or "
                f"`direction`, says {its.name.lower()}. Let the two agree, or drop one; for another study, give "
                "another `study_name`."
            )
    return tuple(given)


def direction_names(directions: Sequence[StudyDirection]) -> str:
    """Return directions as text: "minimize, maximize"."""
    return ", ".join(direction.name.lower() for direction in directions)


def _read_direction(direction: Direction) -> StudyDirection:
    if direction in (StudyDirection.MINIMIZE, "minimize"):
        return StudyDirection.MINIMIZE
    if direction in (StudyDirection.MAXIMIZE, "maximize"):
        return StudyDirection.MAXIMIZE
    raise InvalidOptionError(
        f'`direction`, and each of `directions`, must be "minimize" or "maximize", but got {shown(direction)}.'
    )


@record
class ReturnAnnotation:
    """The directions and names of an objective's values, as far as its return annotation gives them."""

    # One item for each objective, `None` where the annotation names no direction. The value is `None` if the annotation
    # does not tell how many objectives the task or function has.
    directions: tuple[StudyDirection | None, ...] | None = None
    names: tuple[str, ...] | None = None
    constraints: Mapping[int, str] = dataclasses.field(default_factory=dict)  # by their index in what is returned

    @property
    def n_values(self) -> int | None:
        """The number of values that the objective returns; `None` if the annotation does not tell it."""
        return None if self.directions is None else len(self.directions) + len(self.constraints)

    @property
    def fields(self) -> tuple[str, ...] | None:
        """The fields of the annotated NamedTuple, of objectives and of constraints; `None` without one."""
        if self.names is None:
            return None
        names = iter(self.names)
        return tuple(self.constraints.get(index) or next(names) for index in range(self.n_values or 0))


def read_return_annotation(name: str, annotation: Any, *, strict: bool) -> ReturnAnnotation:
    """Read a return annotation.

    Args:
        strict: Whether an annotation of an unknown type is an error. A return annotation of an unknown type is an error
            for a task, because Flyte would refuse that type too.
    """
    if annotation is inspect.Signature.empty or annotation is Any:
        return ReturnAnnotation()
    origin = get_origin(annotation)
    if origin in (Awaitable, Coroutine):
        return read_return_annotation(name, get_args(annotation)[-1], strict=strict)
    if isinstance(annotation, _NO_TYPES) and not isinstance(annotation, type):
        raise _not_floats(name, annotation)  # such as `-> Maximize()`, which is 0.0, or `-> [Maximize, Minimize]`
    if isinstance(annotation, tuple):
        return _of_values(name, [_direction_of(name, item, annotation) for item in annotation])
    if isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
        hints = read_hints(annotation, f"`{annotation.__qualname__}`")
        fields: tuple[str, ...] = getattr(annotation, "_fields")  # noqa: B009 - the fields of a NamedTuple
        return _of_values(name, [_direction_of(name, hints.get(field, Any), annotation) for field in fields], fields)
    if origin is tuple:
        arguments = get_args(annotation)
        if Ellipsis in arguments:
            _refuse_direction(name, arguments[0], annotation)
            return ReturnAnnotation()
        if not arguments or arguments == ((),):
            raise _not_floats(name, annotation)
        return _of_values(name, [_direction_of(name, item, annotation) for item in arguments])
    if origin in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        if len(members) == 1:
            return read_return_annotation(name, members[0], strict=strict)
        for member in members:
            _refuse_direction(name, member, annotation)
        return ReturnAnnotation()
    if not strict and not _is_plain(annotation):
        if _holds_direction(annotation):
            raise _without_number(name, annotation)
        return ReturnAnnotation()
    return _of_values(name, [_direction_of(name, annotation, annotation)])


def _of_values(
    name: str, kinds: Sequence[StudyDirection | Role | None], names: Sequence[str] | None = None
) -> ReturnAnnotation:
    """Return the annotation of several values, of which some are constraints."""
    constraints = {
        index: names[index] if names is not None else f"constraint {index}"
        for index, kind in enumerate(kinds)
        if kind is Role.CONSTRAINT
    }
    directions = tuple(kind for kind in kinds if not isinstance(kind, Role))
    if not directions:
        raise DirectionError(
            f"`{name}` returns constraints only. Return an objective beside them, as in `tuple[Maximize, Constraint]`."
        )
    objectives = None if names is None else tuple(each for at, each in enumerate(names) if at not in constraints)
    return ReturnAnnotation(directions, objectives, constraints)


def _is_plain(annotation: Any) -> bool:
    """Return whether an annotation names the type of a value, and not, for example, a type variable."""
    return (
        annotation in (None, type(None), bool, str, bytes, dict, list, set)
        or (isinstance(annotation, type) and issubclass(annotation, Real))
        or get_origin(annotation) in (Annotated, dict, list, set)
    )


def _direction_of(name: str, annotation: Any, whole: Any) -> StudyDirection | Role | None:
    """Return the direction that the annotation of one value names, or its role; `None` if it names neither."""
    extras: list[Any] = []
    while get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        extras += inner
    if annotation is Any:
        return None
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    if not all(isinstance(kind, type) and issubclass(kind, Real) and not issubclass(kind, bool) for kind in kinds):
        raise _not_floats(name, whole)
    found = [extra for extra in extras if isinstance(extra, StudyDirection | Role)]
    if len(found) > 1:
        raise DirectionError(
            f"`{name}`: a returned value has one direction, or is a constraint, but its annotation holds {len(found)}."
        )
    return found[0] if found else None


def _refuse_direction(name: str, annotation: Any, whole: Any) -> None:
    """Refuse a direction where the annotation does not tell which objective it belongs to."""
    plain = not isinstance(annotation, type) or not issubclass(annotation, tuple)
    if plain and get_origin(annotation) is not tuple and _direction_of(name, annotation, whole) is not None:
        raise _without_number(name, whole)


def _holds_direction(annotation: Any) -> bool:
    """Return whether a type such as `Sequence[Maximize]` names a direction anywhere."""
    return isinstance(annotation, StudyDirection | Role) or any(map(_holds_direction, get_args(annotation)))


def _without_number(name: str, annotation: Any) -> DirectionError:
    return DirectionError(
        f"`{name}`: its annotation `{annotation}` names a direction, but not how many objectives there are. Return "
        "`Maximize`, or `tuple[Maximize, Minimize]`, or give `directions=[...]`."
    )


def _not_floats(name: str, annotation: Any) -> InvalidObjectiveError:
    shown = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return InvalidObjectiveError(
        f"`{name}` must return a float, or a tuple of floats, but its annotation says `{shown}`. "
        "Return `float`, `Minimize`, `Maximize`, or `tuple[Maximize, Minimize]`."
    )
