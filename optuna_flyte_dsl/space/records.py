"""The fields of a class whose objects are made from named values: a dataclass, a pydantic model, and their kin."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, cast

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl.errors import UnresolvedAnnotationError
from optuna_flyte_dsl.space.signatures import local_names, read_hints


@dataclasses.dataclass(frozen=True, repr=False)
class MadeAnew:
    """The default of a field that its class makes anew for each object.

    Args:
        make: Makes the default; `None` if only the class can make it, or the field is then absent.
    """

    make: Callable[[], Any] | None = None

    def __repr__(self) -> str:
        return "made anew"


_MARKER_CALL = r"\b(Float|Integer|Category|Ordinal|When|WhenTrue)\("
_KIND = inspect.Parameter.KEYWORD_ONLY
_EMPTY = inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class TypeWithFields:
    """How objects of one class are made from named values, and read: those of a dataclass or a NamedTuple.

    Attributes:
        kind: The class.
        fields: A parameter for each field. Its default may be a `MadeAnew`.
    """

    kind: Any
    fields: Mapping[str, inspect.Parameter]

    def make(self, values: Mapping[str, Any]) -> Any:
        """Return an object with values of some fields, and the defaults of the others."""
        return self.kind(**values)

    def is_instance(self, value: Any) -> bool:
        """Return whether a value is an object of the class itself, not of a subclass."""
        return type(value) is self.kind

    def values_of(self, value: Any) -> Mapping[str, Any]:
        """Return the values of an object's fields, by name."""
        return {name: getattr(value, name) for name in self.fields}


@dataclasses.dataclass(frozen=True)
class _Model(TypeWithFields):
    """A pydantic model. Its fields may have aliases, by which they are given."""

    aliases: Mapping[str, str]

    def make(self, values: Mapping[str, Any]) -> Any:
        """Return a model, which pydantic validates."""
        return self.kind(**{self.aliases.get(name, name): value for name, value in values.items()})


class _TypedDict(TypeWithFields):
    """A TypedDict. Its objects are plain dicts."""

    def make(self, values: Mapping[str, Any]) -> Any:
        return dict(values)

    def is_instance(self, value: Any) -> bool:
        return isinstance(value, dict) and self.kind.__required_keys__ <= value.keys() <= self.fields.keys()

    def values_of(self, value: Any) -> Mapping[str, Any]:
        return cast("Mapping[str, Any]", value)


def is_pydantic_model(kind: Any) -> bool:
    """Return whether a class is a model of pydantic 2. It is told by its attributes: pydantic is no dependency."""
    return isinstance(kind, type) and hasattr(kind, "model_fields") and hasattr(kind, "__pydantic_validator__")


def fields_of(kind: Any) -> TypeWithFields | None:
    """Return the fields of a class whose objects are made from named values; `None` for anything else.

    Raises:
        UnresolvedAnnotationError: If the class has a marker, and an annotation that cannot be read.
    """
    return _read(kind) if isinstance(kind, type) else None


@functools.lru_cache(maxsize=512)  # bounded, because it keeps classes alive
def _read(kind: Any) -> TypeWithFields | None:
    is_typed_dict, is_tuple = typing.is_typeddict(kind), issubclass(kind, tuple) and hasattr(kind, "_fields")
    if not (dataclasses.is_dataclass(kind) or is_pydantic_model(kind) or is_typed_dict or is_tuple):
        return None
    if is_pydantic_model(kind):
        return _read_model(kind)
    try:
        hints = read_hints(kind, f"`{kind.__qualname__}`", local_names(kind))
    except UnresolvedAnnotationError as error:
        written = [str(each) for base in kind.__mro__ for each in getattr(base, "__annotations__", {}).values()]
        if any(re.search(_MARKER_CALL, each) for each in written):
            raise
        logger.warning("%s If its fields have markers, they are not searched.", error)
        return None
    if is_typed_dict:
        required = getattr(kind, "__required_keys__")  # noqa: B009 - pyright does not know the class
        fields = [
            _field(name, _needed(hint), _EMPTY if name in required else MadeAnew()) for name, hint in hints.items()
        ]
        return _TypedDict(kind, {field.name: field for field in fields})
    if is_tuple:
        parameters = inspect.signature(kind).parameters.values()
        fields = [_field(each.name, hints.get(each.name, Any), each.default) for each in parameters]
        return TypeWithFields(kind, {field.name: field for field in fields})
    declared = [each for each in dataclasses.fields(cast("Any", kind)) if each.init]
    fields = [_field(each.name, hints[each.name], _default(each)) for each in declared]
    return TypeWithFields(kind, {field.name: field for field in fields})


def _read_model(kind: Any) -> TypeWithFields:
    fields, aliases = {}, {}
    for name, field in kind.model_fields.items():
        hint = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        is_made, is_needed = field.default_factory is not None, field.is_required()
        fields[name] = _field(
            name, hint, MadeAnew(_maker(field)) if is_made else _EMPTY if is_needed else field.default
        )
        alias = field.validation_alias if isinstance(field.validation_alias, str) else field.alias
        if alias is not None and not (
            kind.model_config.get("populate_by_name") or kind.model_config.get("validate_by_name")
        ):
            aliases[name] = alias
    return _Model(kind, fields, aliases)


def _needed(hint: Any) -> Any:
    """Return an annotation of a TypedDict without `Required` and `NotRequired`."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) in (typing.Required, typing.NotRequired) else hint


def _field(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, _KIND, annotation=annotation, default=default)


def _maker(field: Any) -> Callable[[], Any] | None:
    """Return the function that makes the default of a pydantic field, if that depends on no other field."""
    takes_others = getattr(field, "default_factory_takes_validated_data", False)
    return None if takes_others else cast("Callable[[], Any]", field.default_factory)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return MadeAnew(field.default_factory)
    return _EMPTY if field.default is dataclasses.MISSING else field.default
