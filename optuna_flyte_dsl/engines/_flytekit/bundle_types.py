"""Carries objects of classes with searched fields through Flyte: choices between classes, and fields with markers."""

import dataclasses
import functools
import json
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin

import msgpack
from flyteidl.core import literals_pb2
from flytekit.core.context_manager import FlyteContext
from flytekit.core.type_engine import AsyncTypeTransformer, TypeEngine, TypeTransformerFailedError
from flytekit.models.literals import Binary, Literal, Primitive, Scalar
from flytekit.models.types import LiteralType, SimpleType
from google.protobuf.json_format import MessageToDict, ParseDict

from optuna_flyte_dsl._text import shown, text_of
from optuna_flyte_dsl.errors import OptunaFlyteError
from optuna_flyte_dsl.space.conversion import to_float
from optuna_flyte_dsl.space.declared_parameter import UNDECLARED, Bundle, bundles_of
from optuna_flyte_dsl.space.domain import is_composite, named
from optuna_flyte_dsl.space.markers import Category, Repeated, Suggestion
from optuna_flyte_dsl.space.records import fields_of, is_pydantic_model

_CLASS, _FIELDS, _TAG = "class", "fields", "msgpack"


def bundle_transformer(annotation: Any) -> AsyncTypeTransformer[Any] | None:
    """Return the transformer of an annotation that is a class with searched fields, or a choice between such classes.

    Returns:
        The transformer; `None` for any other annotation, and for a class that flytekit itself carries faithfully.
    """
    if isinstance(annotation, type) and fields_of(annotation) is None:
        return None  # most annotations
    try:
        return _bundle_transformer(annotation)
    except TypeError:  # the annotation has no hash
        return None


@functools.lru_cache(maxsize=512)
def _bundle_transformer(annotation: Any) -> AsyncTypeTransformer[Any] | None:
    try:
        bundles = bundles_of(annotation)
    except OptunaFlyteError:  # an annotation that is not for a search
        return None
    if not bundles or (isinstance(annotation, type) and all(map(_is_carried_by_flytekit, bundles.values()))):
        return None
    base = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if type(None) not in get_args(base):
        return BundleTransformer(annotation, bundles)
    if len(get_args(base)) == 2:
        return None  # flytekit tells None from the other member, and asks for the transformer of that member
    choice: Any = Union[tuple(bundle.type.kind for bundle in bundles.values())]  # noqa: UP007
    return OptionalTransformer(annotation, Union[Annotated[choice, "not None"], None])  # noqa: UP007


def _is_carried_by_flytekit(bundle: Bundle) -> bool:
    """Return whether flytekit gives an object of a class back as it was.

    Flytekit takes the wrong member of a union of classes with like fields, and it takes no bare marker.
    """
    kind = bundle.type.kind
    if is_pydantic_model(kind) and any(field.exclude for field in kind.model_fields.values()):
        return False
    return (dataclasses.is_dataclass(kind) or is_pydantic_model(kind)) and not any(
        len(field.bundles) > 1
        or isinstance(bundle.type.fields[name].annotation, Suggestion)
        or (field.marker is not None and _has_own_literal(field.marker))
        or not all(map(_is_carried_by_flytekit, field.bundles.values()))
        for name, field in bundle.fields.items()
    )


def _has_own_literal(marker: Suggestion) -> bool:
    if isinstance(marker, Repeated):
        return _has_own_literal(marker.item)
    return is_composite(marker) or (isinstance(marker, Category) and marker.names is not None)


class BundleTransformer(AsyncTypeTransformer[Any]):
    """Converts objects of one or several classes: a literal has the name of the class, and a literal for each field.

    An object of one class is a MessagePack map, as flytekit has it. An object of one of several classes is a JSON text,
    because `pyflyte run` reads no other option for a union. There, a user writes '{"SVM": {"C": 1.0}}', or "SVM".

    Args:
        annotation: The class, or the union of the classes.
        bundles: The classes, by name.
    """

    def __init__(self, annotation: Any, bundles: Mapping[str, Bundle]) -> None:
        super().__init__(f"optuna_flyte_dsl {' | '.join(bundles)}", annotation, enable_type_assertions=False)
        self._bundles = bundles

    def get_literal_type(self, t: Any) -> LiteralType:  # noqa: ARG002
        for bundle in self._bundles.values():
            for field in bundle.type.fields.values():
                # This raises an error for what flytekit cannot carry.
                TypeEngine.to_literal_type(_carrier_of(field.annotation) or field.annotation)
        return LiteralType(simple=SimpleType.STRING if self._is_choice else SimpleType.STRUCT)

    @property
    def _is_choice(self) -> bool:
        return len(self._bundles) > 1

    async def async_to_literal(
        self,
        ctx: FlyteContext,
        python_val: Any,
        python_type: Any,  # noqa: ARG002
        expected: LiteralType,  # noqa: ARG002
    ) -> Literal:
        """Convert an object of one of the classes."""
        if isinstance(python_val, str) and self._is_choice:
            python_val = self._object_of(python_val)
        bundle = next((each for each in self._bundles.values() if each.type.is_instance(python_val)), None)
        if bundle is None:
            raise TypeTransformerFailedError(
                f"An object of the class {' or '.join(self._bundles)} is needed, but got {shown(python_val)}, of type "
                f"{type(python_val).__name__}."
            )
        fields = {}
        for name, value in bundle.type.values_of(python_val).items():
            annotation = bundle.type.fields[name].annotation
            carrier = _carrier_of(annotation)
            carried = to_float(bundle.fields[name].base, value) if carrier is None else carrier(value)
            kind = carrier or annotation
            literal = await TypeEngine.async_to_literal(ctx, carried, kind, TypeEngine.to_literal_type(kind))
            fields[name] = MessageToDict(literal.to_flyte_idl())
        content = {_CLASS: bundle.name, _FIELDS: fields}
        if self._is_choice:
            return Literal(scalar=Scalar(primitive=Primitive(string_value=json.dumps(content))))
        return Literal(scalar=Scalar(binary=Binary(value=msgpack.packb(content), tag=_TAG)))

    async def async_to_python_value(self, ctx: FlyteContext, lv: Literal, expected_python_type: Any) -> Any:  # noqa: ARG002
        """Return the object that a literal stands for."""
        scalar = lv.scalar
        if scalar is not None and scalar.primitive is not None and self._is_choice:
            content = json.loads(str(scalar.primitive.string_value))
        elif scalar is not None and scalar.binary is not None:
            content = msgpack.unpackb(scalar.binary.value)
        else:
            raise TypeTransformerFailedError(f"The literal holds no object of the class {' or '.join(self._bundles)}.")
        made = self._bundles[content[_CLASS]].type
        values = {}
        for name, field in content[_FIELDS].items():
            literal = Literal.from_flyte_idl(ParseDict(field, literals_pb2.Literal()))
            annotation = made.fields[name].annotation
            carrier = _carrier_of(annotation)
            value = await TypeEngine.async_to_python_value(ctx, literal, carrier or annotation)
            values[name] = value if carrier is None else value.value
        return made.make(values)

    def _object_of(self, text: str) -> Any:
        """Return the object that a user has written as text for `pyflyte run`."""
        try:
            given = json.loads(text)
        except ValueError:
            given = text
        given = {given: {}} if isinstance(given, str) else given
        if not isinstance(given, dict) or len(given) != 1 or not given.keys() <= self._bundles.keys():
            first = next(iter(self._bundles))
            raise TypeTransformerFailedError(
                f"An object of the class {' or '.join(self._bundles)} is needed, but got {shown(text)}. Write the "
                f"class and its fields as JSON, as in {json.dumps({first: {'a_field': 1.0}})!r}."
            )
        ((name, fields),) = given.items()
        try:
            return _object_of(self._bundles[name], fields)
        except Exception as error:
            raise TypeTransformerFailedError(f"{name} refuses the fields {shown(fields)}: {text_of(error)}") from error


def _object_of(bundle: Bundle, fields: Mapping[str, Any]) -> Any:
    """Return an object of a class, whose fields have the values of a JSON object."""
    values = {}
    for name, value in fields.items():
        declared = bundle.fields.get(name, UNDECLARED)
        if declared.bundle is not None and isinstance(value, dict):
            values[name] = _object_of(declared.bundle, value)
        else:
            values[name] = named(declared.marker, value) if declared.marker is not None else value
    return bundle.type.make(values)


class OptionalTransformer(AsyncTypeTransformer[Any]):
    """Converts None, or an object of one of several classes.

    Args:
        annotation: The union of the classes and None.
        nested: The same, as a union of two members, so that flytekit does not look into the choice.
    """

    def __init__(self, annotation: Any, nested: Any) -> None:
        super().__init__(f"optuna_flyte_dsl {nested}", annotation, enable_type_assertions=False)
        self._nested = nested

    def get_literal_type(self, t: Any) -> LiteralType:  # noqa: ARG002
        return TypeEngine.to_literal_type(self._nested)

    async def async_to_literal(
        self,
        ctx: FlyteContext,
        python_val: Any,
        python_type: Any,  # noqa: ARG002
        expected: LiteralType,
    ) -> Literal:
        """Convert an object, or None."""
        return await TypeEngine.async_to_literal(ctx, python_val, self._nested, expected)

    async def async_to_python_value(self, ctx: FlyteContext, lv: Literal, expected_python_type: Any) -> Any:  # noqa: ARG002
        """Return the object, or None."""
        return await TypeEngine.async_to_python_value(ctx, lv, self._nested)


@functools.lru_cache(maxsize=512)
def _carrier_of(annotation: Any) -> Any:
    """Return a dataclass around the type of a field that holds a tuple, which flytekit refuses; else `None`."""
    return dataclasses.make_dataclass("Carrier", [("value", annotation)]) if _holds_tuple(annotation) else None


def _holds_tuple(annotation: Any) -> bool:
    base = get_origin(annotation) or annotation
    is_tuple = isinstance(base, type) and issubclass(base, tuple)
    return is_tuple or any(map(_holds_tuple, get_args(annotation) if base is not typing.Literal else ()))
