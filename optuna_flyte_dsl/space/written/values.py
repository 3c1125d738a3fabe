"""Values, markers and conditions as plain data, which JSON and YAML carry, and back.

A value that JSON does not have is a dict with one key that begins with `$`, such as `{"$tuple": [16, 16]}`. A marker
inside a value is `{"$search": {...}}`.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping
from typing import Any

from optuna_flyte_dsl._record import record
from optuna_flyte_dsl._text import did_you_mean, shown
from optuna_flyte_dsl.errors import InvalidMarkerError, InvalidMarkerTypeError, InvalidSpaceError
from optuna_flyte_dsl.space.conditions import AllOf, AnyOf, Condition, NotThat, When
from optuna_flyte_dsl.space.conversion import is_numpy_scalar
from optuna_flyte_dsl.space.function_condition import WhenTrue
from optuna_flyte_dsl.space.markers import Category, Fixed, Float, Integer, Ordinal, Repeated, Suggestion
from optuna_flyte_dsl.space.priors import Beta, Normal
from optuna_flyte_dsl.space.records import fields_of
from optuna_flyte_dsl.space.written.references import References

MARKERS: Mapping[str, type[Suggestion]] = {
    "float": Float,
    "integer": Integer,
    "category": Category,
    "ordinal": Ordinal,
    "list": Repeated,
}
"""The markers by their kinds."""

_NEEDED: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("float", "integer"), frozenset({"low", "high"})),
    **dict.fromkeys(("category", "ordinal"), frozenset({"choices"})),
    "list": frozenset({"item", "length"}),
}
_FURTHER: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("float", "integer"), frozenset({"step", "log", "prior"})),
    **dict.fromkeys(("category", "ordinal"), frozenset({"weights"})),
}
PRIORS: Mapping[str, type[Normal | Beta]] = {"normal": Normal, "beta": Beta}


class Writer:
    """Writes values, markers and conditions as plain data, and collects the objects to which the data refers."""

    def __init__(self) -> None:
        self.references: References = References()

    def value(self, value: Any, where: str) -> Any:
        """Return a value as plain data.

        Args:
            where: The path of the parameter that has the value.
        """
        if value is None or type(value) in (bool, int, str):
            return value
        if _is_member(value):
            return {"$enum": f"{self.references.name_of(type(value), where)}.{value.name}"}
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
        if isinstance(value, Suggestion):
            return {"$search": self.marker(value, where)}
        if isinstance(value, Fixed):
            return {"$fixed": self.value(value.value, where)}
        if type(value) in (list, tuple, set, frozenset):
            items = [self.value(item, f"{where}.{index}") for index, item in enumerate(value)]
            return items if type(value) is list else {f"${type(value).__name__}": items}
        if type(value) is dict:
            pairs = [(key, self.value(item, f"{where}.{key}")) for key, item in value.items()]
            if all(type(key) is str and not key.startswith("$") for key in value):
                return dict(pairs)
            return {"$dict": [[self.value(key, where), item] for key, item in pairs]}
        fields = fields_of(type(value))
        if fields is not None and not isinstance(value, type):
            given = {name: self.value(each, f"{where}.{name}") for name, each in fields.values_of(value).items()}
            return {"$object": {"class": self.references.name_of(type(value), where), "fields": given}}
        if is_numpy_scalar(value):
            return self.value(value.item(), where)
        return {"$reference": self.references.name_of(value, where)}

    def marker(self, marker: Suggestion, where: str) -> dict[str, Any]:
        """Return a marker as plain data."""
        kind = next((kind for kind, each in MARKERS.items() if each is type(marker)), None)
        if kind is None:
            raise InvalidSpaceError(
                f"`{where}`: the marker {shown(marker)} is of the class {type(marker).__name__}, which no file can "
                "name. Use a marker of this library."
            )
        written: dict[str, Any] = {"kind": kind}
        match marker:
            case Float() | Integer():
                usual = type(marker)(0, 1)
                for name in ("low", "high", "step", "log"):
                    if (given := getattr(marker, name)) != getattr(usual, name) or name in ("low", "high"):
                        written[name] = given
                if marker.prior is not None:
                    kind = next(kind for kind, each in PRIORS.items() if each is type(marker.prior))
                    written["prior"] = {"kind": kind, **dataclasses.asdict(marker.prior)}
            case Repeated():
                written |= {"item": self.marker(marker.item, where), "length": marker.length}
            case Category():
                own = tuple(each.name if isinstance(each, enum.Enum) else None for each in marker.choices)
                is_named = marker.names is not None and marker.names != own
                labels = marker.names if is_named and marker.names is not None else range(len(marker.choices))
                places = [f"{where}: {label}" for label in labels]
                choices = list(map(self.value, marker.choices, places))
                written["choices"] = dict(zip(labels, choices, strict=True)) if is_named else choices
                if marker.weights is not None:
                    written["weights"] = list(marker.weights)
        return written

    def condition(self, condition: Condition, where: str) -> dict[str, Any]:
        """Return a condition as plain data."""
        match condition:
            case AllOf() | AnyOf():
                key = "all" if isinstance(condition, AllOf) else "any"
                return {key: [self.condition(part, where) for part in condition.parts]}
            case NotThat():
                return {"not": self.condition(condition.part, where)}
            case When():
                written: dict[str, Any] = {"parameter": condition.parameter}
                if condition.values:
                    written["values"] = [self.value(value, where) for value in condition.values]
                return written | condition.bounds
            case WhenTrue():
                function = self.references.name_of_condition(condition.function, f"{where}: when")
                return {"function": function, "parameters": dict(condition.parameters)}
        raise AssertionError(condition)


@record
class Reader:
    """Reads values, markers and conditions from plain data.

    Raises:
        InvalidSpaceError: If the data does not describe what is read.
    """

    references: References

    def value(self, data: Any, where: str) -> Any:
        """Return the value that data stands for."""
        if isinstance(data, list):
            return [self.value(item, where) for item in data]
        if not isinstance(data, Mapping):
            return data
        tags = [key for key in data if isinstance(key, str) and key.startswith("$")]
        if not tags:
            return {key: self.value(item, f"{where}.{key}") for key, item in data.items()}
        read: Mapping[str, Callable[[Any], Any]] = {
            "$tuple": lambda items: tuple(self.value(items, where)),
            "$set": lambda items: set(self.value(items, where)),
            "$frozenset": lambda items: frozenset(self.value(items, where)),
            "$dict": lambda pairs: {self.value(key, where): self.value(item, where) for key, item in pairs},
            "$float": float,
            "$enum": self._member,
            "$search": lambda marker: self.marker(marker, where),
            "$fixed": lambda value: Fixed(self.value(value, where)),
            "$object": lambda made: self._object(made, where),
            "$reference": self.references.find,
        }
        (tag, *others) = tags
        if others or len(data) > 1 or tag not in read:
            raise InvalidSpaceError(
                f"The space: `{where}`: a dict with a key that begins with `$` must have one key, which is one of "
                f"{', '.join(read)}, but got {shown(dict(data))}.{did_you_mean(tag, read)}"
            )
        try:
            return read[tag](data[tag])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, InvalidSpaceError):
                raise
            raise InvalidSpaceError(f"The space: `{where}`: {shown(dict(data))} cannot be read: {error}") from error

    def marker(self, data: Any, where: str, others: tuple[str, ...] = ()) -> Suggestion:
        """Return the marker that data stands for.

        Args:
            others: The kinds that could stand in place of a marker's kind, for errors.
        """
        given = dict(mapping(data, where, "a marker"))
        kind = given.pop("kind", None)
        if not isinstance(kind, str) or kind not in MARKERS:
            kinds = (*MARKERS, *others)
            raise InvalidSpaceError(
                f"The space: `{where}`: `kind` must be one of {', '.join(kinds)}, but got {shown(kind)}."
                f"{did_you_mean(str(kind), kinds)}"
            )
        check_keys(given, _NEEDED[kind] | _FURTHER.get(kind, frozenset()), where)
        if missing := _NEEDED[kind] - given.keys():
            raise InvalidSpaceError(f"The space: `{where}`: a marker of the kind {kind} needs {listed_keys(missing)}.")
        if "item" in given:
            given["item"] = self.marker(given["item"], where)
        if "choices" in given:
            given["choices"] = self.value(given["choices"], where)
        try:
            if given.get("prior") is not None:
                given["prior"] = self._prior(given["prior"], where)
            return MARKERS[kind](**given)
        except (InvalidMarkerError, InvalidMarkerTypeError) as error:
            raise InvalidSpaceError(f"The space: `{where}`: {error}") from error

    def condition(self, data: Any, where: str) -> Condition:
        """Return the condition that data stands for."""
        given = dict(mapping(data, where, "a condition"))
        for key, kind in (("all", AllOf), ("any", AnyOf)):
            if key in given:
                check_keys(given, {key}, where)
                if not isinstance(given[key], list) or not given[key]:
                    raise InvalidSpaceError(
                        f"The space: `{where}`: `{key}` must be a list of conditions, but got {shown(given[key])}."
                    )
                return kind(tuple(self.condition(part, where) for part in given[key]))
        if "not" in given:
            check_keys(given, {"not"}, where)
            return NotThat(self.condition(given["not"], where))
        if "function" in given:
            return self._function_condition(given, where)
        check_keys(given, {"parameter", "values", "gt", "ge", "lt", "le"}, where)
        values = self.value(given.pop("values", []), where)
        if not isinstance(values, list):
            raise InvalidSpaceError(f"The space: `{where}`: `values` must be a list, but got {shown(values)}.")
        try:
            return When(given.pop("parameter", ""), *values, **given)
        except (InvalidMarkerError, InvalidMarkerTypeError, TypeError) as error:
            raise InvalidSpaceError(f"The space: `{where}`: {error}") from error

    def _function_condition(self, data: Mapping[str, Any], where: str) -> Condition:
        check_keys(data, {"function", "parameters"}, where)
        parameters = mapping(data.get("parameters", {}), where, "`parameters`")
        # A file may not choose a function that is called.
        function = self.references.condition(data["function"])
        if function is None:
            raise InvalidSpaceError(
                f"The space: `{where}`: the condition's function must be one of the objective's own conditions, but "
                f"got {shown(data['function'])}. Give the objective that has it, as in `SearchSpace.from_dict(data, "
                "train)`."
            )
        try:
            return WhenTrue(function, **parameters)
        except (InvalidMarkerError, InvalidMarkerTypeError) as error:
            raise InvalidSpaceError(f"The space: `{where}`: {error}") from error

    def _prior(self, data: Any, where: str) -> Normal | Beta:
        given = dict(mapping(data, where, "`prior`"))
        kind = given.pop("kind", None)
        if not isinstance(kind, str) or kind not in PRIORS:
            raise InvalidSpaceError(
                f"The space: `{where}`: the `kind` of `prior` must be one of {', '.join(PRIORS)}, but got "
                f"{shown(kind)}.{did_you_mean(str(kind), PRIORS)}"
            )
        names = {field.name for field in dataclasses.fields(PRIORS[kind])}
        check_keys(given, names, where)
        if missing := names - given.keys():
            raise InvalidSpaceError(f"The space: `{where}`: a prior of the kind {kind} needs {listed_keys(missing)}.")
        return PRIORS[kind](**given)

    def _member(self, name: str) -> enum.Enum:
        kind, _, member = name.rpartition(".")
        found: enum.Enum = self.references.find(kind)[member]
        return found

    def _object(self, data: Mapping[str, Any], where: str) -> Any:
        check_keys(mapping(data, where, "an object"), {"class", "fields"}, where)
        kind = self.references.find(data.get("class"))
        fields = fields_of(kind)
        if fields is None:
            raise ValueError(f"{kind.__name__} has no fields that a space can give.")
        return fields.make({name: self.value(each, f"{where}.{name}") for name, each in data.get("fields", {}).items()})


def _is_member(value: Any) -> bool:
    """Return whether a value is a member of an Enum that has a name of its own: `A | B` of a Flag has none."""
    return isinstance(value, enum.Enum) and type(value).__members__.get(value.name) is value


def mapping(data: Any, where: str, what: str) -> Mapping[str, Any]:
    """Return data that must be a dict with names as its keys.

    Args:
        where: The path of the parameter to which the data belongs.
        what: What the data describes.
    """
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise InvalidSpaceError(f"The space: `{where}`: {what} must be a dict, but got {shown(data)}.")
    return data


def check_keys(data: Mapping[str, Any], known: frozenset[str] | set[str], where: str) -> None:
    """Check that data has no other keys than some known ones."""
    for key in data:
        if key not in known:
            raise InvalidSpaceError(
                f"The space: `{where}` has the key `{key}`, but only {listed_keys(known)} are known here."
                f"{did_you_mean(key, known)}"
            )


def listed_keys(keys: frozenset[str] | set[str]) -> str:
    """Return keys in backticks, in the order of the alphabet."""
    return ", ".join(f"`{key}`" for key in sorted(keys))
