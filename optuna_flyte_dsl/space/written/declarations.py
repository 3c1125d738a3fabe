"""The declared parameters of a search space, and the arguments of its calls, as plain data, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from optuna_flyte_dsl._record import record
from optuna_flyte_dsl._text import did_you_mean, shown
from optuna_flyte_dsl.errors import InvalidAnnotationError, InvalidSpaceError
from optuna_flyte_dsl.space import conversion, domain
from optuna_flyte_dsl.space.annotations import NO_TYPE, is_of_type, listed, type_clash
from optuna_flyte_dsl.space.argument_errors import unknown_parameter
from optuna_flyte_dsl.space.declared_parameter import (
    UNDECLARED,
    Bundle,
    DeclaredParameter,
    DeclaredSignature,
    declare_bundle,
)
from optuna_flyte_dsl.space.markers import Category, Fixed, Number, Suggestion
from optuna_flyte_dsl.space.records import MadeAnew, fields_of
from optuna_flyte_dsl.space.tree_builder import ChosenLabel
from optuna_flyte_dsl.space.written.references import References
from optuna_flyte_dsl.space.written.type_text import read_type, type_text
from optuna_flyte_dsl.space.written.values import Reader, Writer, check_keys, mapping

VERSION = 1
_TOP = {"version", "objective", "is_task", "takes_any", "parameters", "arguments"}
_BESIDE = {"type", "optional", "default", "when"}
_MADE_ANEW = {"$made": "anew"}


def write(signature: DeclaredSignature, bound: Mapping[str, Any]) -> tuple[dict[str, Any], References]:
    """Return a space as plain data, and the objects to which the data refers.

    Args:
        bound: The arguments of calls, by path.
    """
    try:
        return _write(signature, bound)
    except RecursionError as error:
        raise InvalidSpaceError(
            f"The space of `{signature.objective}` has an argument that is nested too deep, or holds itself. Pass less."
        ) from error


def _write(signature: DeclaredSignature, bound: Mapping[str, Any]) -> tuple[dict[str, Any], References]:
    writer = Writer()
    data: dict[str, Any] = {"version": VERSION, "objective": signature.objective}
    if signature.strict:
        data["is_task"] = True
    if signature.is_open:
        data["takes_any"] = True
    data["parameters"] = {name: _written(writer, each, name) for name, each in signature.parameters.items()}
    if bound:
        data["arguments"] = {
            path: _written_argument(writer, signature.paths.get(path, UNDECLARED), value, path)
            for path, value in bound.items()
        }
    return data, writer.references


def _written(writer: Writer, declared: DeclaredParameter, path: str) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if declared.marker is not None:
        data |= writer.marker(declared.marker, path)
    elif declared.bundle is not None:
        data |= {"kind": "class", **_written_bundle(writer, declared, declared.bundle, path)}
    elif declared.bundles:
        classes = {name: _written_bundle(writer, declared, each, path) for name, each in declared.bundles.items()}
        data |= {"kind": "classes", "classes": classes}
    if declared.base != _usual_type(declared) and not declared.bundles:
        text = type_text(declared.base)
        data["type"] = text if text is not None else {"$reference": writer.references.name_of(declared.base, path)}
    if declared.optional:
        data["optional"] = True
    if isinstance(declared.default, MadeAnew):
        data["default"] = dict(_MADE_ANEW)
    elif declared.has_default:
        data["default"] = writer.value(declared.default, path)
    if declared.condition is not None:
        data["when"] = writer.condition(declared.condition, path)
    return data


def _written_bundle(writer: Writer, declared: DeclaredParameter, bundle: Bundle, path: str) -> dict[str, Any]:
    fields = {
        name: _written(writer, field, declared.field_path(path, bundle, name)) for name, field in bundle.fields.items()
    }
    return {"class": writer.references.name_of(bundle.type.kind, f"{path}: {bundle.name}"), "fields": fields}


def _written_argument(writer: Writer, declared: DeclaredParameter, value: Any, path: str) -> Any:
    if isinstance(value, ChosenLabel):
        return writer.value(value.argument, path)
    marker = declared.marker
    is_given_as_it_is = isinstance(value, Suggestion) or (value is None and declared.optional)
    if marker is None or is_given_as_it_is or domain.is_composite(marker):
        return writer.value(value, path)
    if not domain.contains(marker, value):
        return writer.value(Fixed(value), path)
    if isinstance(marker, Category) and marker.names is not None:
        return marker.names[marker.index(value)]
    return writer.value(value, path)


def _usual_type(declared: DeclaredParameter) -> Any:
    """Return the type of a parameter whose annotation is nothing but its marker."""
    return conversion.value_types(declared.marker)[0] if isinstance(declared.marker, Number) else NO_TYPE


def read(
    data: Any, references: References, origin: DeclaredSignature | None
) -> tuple[DeclaredSignature, dict[str, Any]]:
    """Return the declared parameters and the arguments that data describes.

    Args:
        references: The objects to which the data may refer.
        origin: What the objective declares; `None` if the objective is not known. Parameters that the data leaves out
            are those of the objective.

    Raises:
        InvalidSpaceError: If the data does not describe a space, or not one of the objective.
        ArgumentError: If the objective does not have a parameter.
    """
    try:
        return _read(data, references, origin)
    except RecursionError as error:
        raise InvalidSpaceError("The space is nested too deep to be read. Write it flatter.") from error


def _read(
    data: Any, references: References, origin: DeclaredSignature | None
) -> tuple[DeclaredSignature, dict[str, Any]]:
    top = mapping(data, "the space itself", "a search space")
    check_keys(top, _TOP, "the space itself")
    if top.get("version", VERSION) != VERSION:
        raise InvalidSpaceError(
            f"The space has the version {shown(top['version'])}, but this library reads the version {VERSION}. Install "
            "the optuna-flyte-dsl that wrote it."
        )
    if not {"parameters", "arguments"} & top.keys():
        raise InvalidSpaceError(
            "The space lacks `parameters`, a dict of the parameters by name, such as "
            '`{"parameters": {"lr": {"kind": "float", "low": 0.001, "high": 0.1, "log": true}}}`.'
        )
    written = mapping(top.get("parameters", {}), "parameters", "the parameters")
    arguments = mapping(top.get("arguments", {}), "arguments", "the arguments")
    if origin is None:
        origin = DeclaredSignature(
            str(top.get("objective", "objective")), {}, bool(top.get("takes_any")), bool(top.get("is_task"))
        )
    else:
        for name in written:
            if name not in origin.paths and not origin.is_open:
                raise unknown_parameter(origin.objective, name, origin.paths)
    reader = _DeclarationReader(references, origin.objective, origin.strict)
    parameters = dict(origin.parameters)
    for name, each in written.items():
        declared = reader.declaration(each, name, origin.paths.get(name))
        root = name.partition(".")[0]
        if name not in parameters and root in parameters:  # the path of a field
            name, declared = root, parameters[root].replaced(root, name, declared)
        parameters[name] = declared
    given = {path: reader.value(value, path) for path, value in arguments.items()}
    return dataclasses.replace(origin, parameters=parameters), given


@record
class _DeclarationReader(Reader):
    """Reads declared parameters.

    Args:
        objective: The objective's name, for errors.
        is_task: Whether the objective is a task.
    """

    objective: str
    is_task: bool

    def declaration(self, data: Any, path: str, origin: DeclaredParameter | None) -> DeclaredParameter:
        """Return a declared parameter.

        Args:
            origin: What the objective, or the class of a field, declares; `None` if that is not known.
        """
        if not isinstance(data, Mapping):
            raise InvalidSpaceError(
                f"The space: `{path}`: a parameter must be a dict, but got {shown(data)}. To fix a value, write it "
                f"under `arguments`, beside `parameters`: `{{{path}: {shown(data)}}}`."
            )
        entry = dict(mapping(data, path, "a parameter"))
        beside = {key: entry.pop(key) for key in _BESIDE if key in entry}
        kind = entry.get("kind")
        marker: Suggestion | None = None
        bundles: Mapping[str, Bundle] = {}
        if kind in ("class", "classes"):
            bundles = self._bundles(entry, path, origin)
        elif entry:
            marker = self.marker(entry, path, ("class", "classes"))
        default = origin.default if origin is not None else NO_TYPE
        if "default" in beside and beside["default"] != _MADE_ANEW:
            default = self.value(beside["default"], path)
        condition = origin.condition if origin is not None else None
        if "when" in beside:
            condition = None if beside["when"] is None else self.condition(beside["when"], path)
        if origin is not None:
            if marker is not None:
                marker = origin.accept(self.objective, path, marker, is_task=self.is_task)
            self._check_default(path, marker, origin.base, default, is_free=condition is not None or origin.optional)
            return dataclasses.replace(origin, marker=marker, default=default, condition=condition, bundles=bundles)
        base = self._base(beside.get("type"), path)
        if base is NO_TYPE and isinstance(marker, Number):
            base = conversion.value_types(marker)[0]
        if marker is not None and (clash := type_clash(marker, base)):
            raise InvalidSpaceError(f"The space: the type of `{path}` {clash}. Let the two agree.")
        is_free = condition is not None or bool(beside.get("optional"))
        self._check_default(path, marker, base, default, is_free=is_free)
        return DeclaredParameter(
            marker, base, bool(beside.get("optional")), default, condition=condition, bundles=bundles
        )

    def _check_default(self, path: str, marker: Suggestion | None, base: Any, default: Any, *, is_free: bool) -> None:
        """Check that the default of a parameter is one that it can have.

        Args:
            is_free: Whether the default may lie outside of the marker.
        """
        if default is NO_TYPE or isinstance(default, MadeAnew) or (default is None and is_free):
            return
        if not is_of_type(base, default):
            raise InvalidSpaceError(
                f"The space: the default of `{path}` must be of type {base.__name__}, but got {shown(default)}. Change "
                "the default."
            )
        if marker is not None and not is_free and not domain.contains(marker, default):
            raise InvalidSpaceError(
                f"The space: the default of `{path}` must lie within {shown(marker)}, but got {shown(default)}. Change "
                "the default, or widen the marker."
            )

    def _base(self, data: Any, path: str) -> Any:
        if data is None:
            return NO_TYPE
        try:
            if isinstance(data, Mapping):
                return self.references.find(data.get("$reference"))
            return read_type(str(data))
        except InvalidSpaceError:
            return NO_TYPE  # the objective, where it is known, checks the type
        except ValueError as error:
            raise InvalidSpaceError(
                f"The space: `{path}`: `type` must be a type, such as `int` or `list[float]`, but got {shown(data)}."
            ) from error

    def _bundles(self, entry: Mapping[str, Any], path: str, origin: DeclaredParameter | None) -> dict[str, Bundle]:
        if entry["kind"] == "class":
            check_keys(entry, {"kind", "class", "fields"}, path)
            bundle = self._bundle(entry, path, origin)
            return {bundle.name: bundle}
        check_keys(entry, {"kind", "classes"}, path)
        bundles = {}
        for name, each in mapping(entry.get("classes"), path, "`classes`").items():
            check_keys(mapping(each, f"{path}.{name}", "a class"), {"class", "fields"}, f"{path}.{name}")
            bundles[name] = self._bundle(each, f"{path}.{name}", origin)
            if bundles[name].name != name:
                raise InvalidSpaceError(
                    f"The space: `{path}`: the class `{bundles[name].name}` must stand under its own name, but got "
                    f"`{name}`."
                )
        return bundles

    def _bundle(self, data: Mapping[str, Any], path: str, origin: DeclaredParameter | None) -> Bundle:
        kind = self.references.find(data.get("class"))
        if fields_of(kind) is None:
            raise InvalidSpaceError(
                f"The space: `{path}`: `class` must be a dataclass, a pydantic model, a NamedTuple or a TypedDict, but "
                f"got {shown(kind)}."
            )
        known = origin.bundles.get(kind.__name__) if origin is not None else None
        if origin is not None and (known is None or known.type.kind is not kind):
            raise InvalidSpaceError(
                f"The space: `{path}` is of the class {kind.__name__}, but the signature of `{self.objective}` has "
                f"{listed(origin.bundles) or 'no class with searched fields'} there."
            )
        try:
            bundle = known if known is not None else declare_bundle("The space", path, kind)
        except InvalidAnnotationError as error:
            raise InvalidSpaceError(str(error)) from error
        fields = dict(bundle.fields)
        for name, each in mapping(data.get("fields", {}), path, "`fields`").items():
            if name not in fields:
                raise InvalidSpaceError(
                    f"The space: `{path}` is a {bundle.name}, which has no field `{name}`; it has {listed(fields)}."
                    f"{did_you_mean(name, fields)}"
                )
            fields[name] = self.declaration(each, f"{path}.{name}", fields[name])
        return Bundle(bundle.type, fields)
