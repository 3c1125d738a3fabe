"""`DeclaredSpace`: what a search space consists of, and how it is made, shown, written, read and compared."""

from __future__ import annotations

import dataclasses
import html
import inspect
import itertools
import os
import types
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Self, cast, get_origin

from optuna.distributions import BaseDistribution

from optuna_flyte_dsl.errors import InvalidAnnotationError
from optuna_flyte_dsl.space import argument_errors
from optuna_flyte_dsl.space.acceptance import bind_arguments
from optuna_flyte_dsl.space.conditions import Condition
from optuna_flyte_dsl.space.declared_parameter import DeclaredParameter, DeclaredSignature, declare_signature
from optuna_flyte_dsl.space.differences import differences
from optuna_flyte_dsl.space.function_condition import WhenTrue
from optuna_flyte_dsl.space.markers import Suggestion
from optuna_flyte_dsl.space.scenarios import PointCounter, comparisons
from optuna_flyte_dsl.space.signatures import read_signature
from optuna_flyte_dsl.space.space_text import Branch, node_branch, size_text
from optuna_flyte_dsl.space.tree import ArgumentTree
from optuna_flyte_dsl.space.tree_builder import TreeBuilder
from optuna_flyte_dsl.space.written import files

if TYPE_CHECKING:
    from optuna_flyte_dsl.space.written.references import References


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DeclaredSpace(Mapping[str, Suggestion]):
    """Base of `SearchSpace`: what a space is, not what a trial does with it."""

    _signature: DeclaredSignature
    _bound: Mapping[str, Any]  # the arguments of calls, by the path of a parameter or of a field

    @classmethod
    def of(cls, objective: Callable[..., Any] | Self) -> Self:
        """Return the space of a function, of a decorated objective, or of another object with an attribute `space`.

        Raises:
            InvalidAnnotationError: If a marker is used in a way that has no meaning.
            InvalidMarkerError: If a default lies outside its marker.
        """
        if isinstance(objective, cls):
            return objective
        space = getattr(objective, "space", None)
        if isinstance(space, cls):
            return space
        function = cast("Callable[..., Any]", objective)
        return cls.from_signature(read_signature(function), name=getattr(function, "__name__", "objective"))

    @classmethod
    def from_signature(
        cls,
        signature: inspect.Signature,
        arguments: Mapping[str, Any] | None = None,
        *,
        name: str = "objective",
        ignore: frozenset[str] = frozenset(),
        strict: bool = False,
    ) -> Self:
        """Return the space of a signature whose annotations are objects, not strings.

        Args:
            signature: The signature of the objective.
            arguments: Keyword arguments of a call, which are bound to the space.
            name: The objective's name in error messages.
            ignore: Parameters that a call does not give, such as `trial`.
            strict: Whether a value must have its parameter's type, if that is bool, int, float or str.
        """
        space = cls(declare_signature(signature, name, ignore=ignore, strict=strict), {})
        space._check_conditions()
        return space.bind(**arguments) if arguments else space

    def _check_conditions(self) -> None:
        """Check that each parameter can be active.

        Raises:
            InvalidAnnotationError: If a condition can never hold, names no parameter, or is part of a cycle.
        """
        tree = self._tree
        _ = tree.order
        for node, condition in tree.every_node():
            if condition is not None and not tree.can_ever_hold(condition):
                raise InvalidAnnotationError(
                    f"`{self.name}`: `{node.name}` is never active, because no trial has {condition.in_words()}. "
                    "Correct the condition."
                )

    def bind(self, /, *args: Any, **kwargs: Any) -> Self:
        """Return a space in which the arguments of a call fix parameters or replace their markers.

        A value fixes its parameter. A suggestion replaces the parameter's marker. A dict, list or tuple may hold
        suggestions at any depth. `Fixed(value)` is accepted even if the parameter's marker does not contain the value.
        A field of a bundle is given by its path, `**{"config.lr": 0.1}`, by a dict, or by an object of the class.

        Args:
            *args: Values of the first parameters.
            **kwargs: Values by parameter name, or by the path of a field.

        Raises:
            ArgumentError: If the objective has no such parameter, or a parameter is given twice.
            OutOfRangeError: If a fixed value lies outside its marker.
        """
        bound = bind_arguments(self._signature, self._bound, args, kwargs)
        space = dataclasses.replace(self, _bound=bound)
        _ = space._tree  # made now, because the arguments may have suggestions where no value can replace them
        return space

    def replace(self, /, **declarations: Any) -> Self:
        """Return a space that declares some parameters otherwise.

        Args:
            **declarations: What each parameter is, by its name or the path of a field: a marker, `Annotated[float,
                Float(0, 1), When("kernel", "rbf")]`, or a value, which fixes the parameter. A marker by itself leaves
                the condition of its parameter as it is.

        Raises:
            ArgumentError: If the objective has no such parameter, or a value is not of its type.
            InvalidAnnotationError: If a condition can never hold, names no parameter, or is part of a cycle.
            OutOfRangeError: If a value lies outside its marker.

        >>> from optuna_flyte_dsl import Float, SearchSpace
        >>> def train(lr: Float(1e-5, 1e-1, log=True)) -> float: ...
        >>> SearchSpace.of(train).replace(lr=Float(1e-4, 1e-2, log=True))
        SearchSpace(lr=Float(0.0001, 0.01, log=True))
        """
        signature, bound, values = self._signature, dict(self._bound), {}
        for path, declaration in declarations.items():
            if not isinstance(declaration, Suggestion) and get_origin(declaration) is not Annotated:
                values[path] = declaration
                continue
            if path not in signature.paths:
                raise argument_errors.unknown_parameter(self.name, path, signature.paths)
            signature = signature.replaced(path, declaration)
            bound = {name: each for name, each in bound.items() if not f"{name}.".startswith(f"{path}.")}
        space = dataclasses.replace(self, _signature=signature, _bound=bound)
        space._check_conditions()
        return space.bind(**values)

    @property
    def name(self) -> str:
        """The name of the objective."""
        return self._signature.objective

    @property
    def _declared(self) -> Mapping[str, DeclaredParameter]:
        return self._signature.parameters

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of a trial, by parameter, with a marker in place of each searched value."""
        return types.MappingProxyType(self._template)

    @cached_property
    def _tree(self) -> ArgumentTree:
        return TreeBuilder(self._signature, self._bound).build()

    @cached_property
    def _template(self) -> dict[str, Any]:
        return {name: node.template() for name, node in self._tree.nodes.items()}

    @property
    def missing(self) -> tuple[str, ...]:
        """The parameters without a marker, without a default, and without a value from the call."""
        return self._tree.missing

    @cached_property
    def _markers(self) -> Mapping[str, Suggestion]:
        return {name: marker for name, marker, _, _ in self._tree.parameters.values() if marker is not None}

    @cached_property
    def conditions(self) -> Mapping[str, Condition]:
        """The condition of each parameter that is not always active, by name, with whole paths for names."""
        parameters = self._tree.parameters.values()
        return {name: condition for name, _, _, condition in parameters if condition is not None}

    @property
    def has_functions(self) -> bool:
        """Whether functions of the user decide conditions. Such a function may block."""
        compared = itertools.chain.from_iterable(map(comparisons, self.conditions.values()))
        return any(isinstance(each, WhenTrue) for each in compared)

    def fixed_values(self) -> dict[str, Any]:
        """Return the values that are not searched, by path, with the defaults of inactive parameters."""
        return self._tree.fixed_values()

    def declared_marker(self, name: str) -> Suggestion | None:
        """Return the marker that the signature has for a parameter or a field, even if a call has fixed it."""
        declared = self._signature.paths.get(name)
        return None if declared is None else declared.marker

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the Optuna distribution of each searched parameter, by name."""
        return {name: marker.to_distribution() for name, marker in self.items()}

    @cached_property
    def _distributions(self) -> Mapping[str, BaseDistribution]:
        return self.distributions()

    def __getitem__(self, name: str) -> Suggestion:
        return self._markers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._markers)

    def __len__(self) -> int:
        return len(self._markers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DeclaredSpace):
            return NotImplemented
        return self._tree.nodes == other._tree.nodes and self.missing == other.missing

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        """Return the space as a tree: its parameters, with their markers, fixed values and defaults."""
        branches = [node_branch(name, node) for name, node in self._tree.nodes.items()]
        branches += [Branch(f"{name}: needs a value") for name in self.missing]
        return "\n".join(Branch(f"{self.name}: {size_text(self, self.n_points)}", tuple(branches)).lines())

    @property
    def n_points(self) -> float:
        """The number of points: an int, or infinity. It is infinity too if the conditions are too many to count."""
        return self.counter.count

    @cached_property
    def counter(self) -> PointCounter:
        """Counts the points of this space, and finds the point at an index."""
        return PointCounter(self._tree.order)

    def _repr_html_(self) -> str:
        """Return the tree as notebooks show it."""
        return f"<pre>{html.escape(str(self))}</pre>"

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self._template.items())
        return f"SearchSpace({inner})"

    def to_dict(self) -> dict[str, Any]:
        """Return this space as plain data, of which each value is one that JSON and YAML have.

        A class, a function and a member of an Enum are written as their names, `module:name`. Another object, such as a
        choice of `Category({"relu": nn.ReLU()})`, is written as its place in the space.
        """
        from optuna_flyte_dsl.space.written import declarations  # loaded late: few spaces are written

        return declarations.write(self._signature, self._bound)[0]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], objective: Callable[..., Any] | Self | None = None) -> Self:
        """Return the space that `to_dict` has written.

        Args:
            data: What `to_dict` has returned. It may have been changed.
            objective: The objective of the space. With an objective, parameters that the data leaves out are those of
                the objective. Without one, the classes to which the data refers must have been imported, because
                reading a space imports no module, and other objects cannot be read.

        Raises:
            InvalidSpaceError: If the data does not describe a space, or not one of the objective.
            InvalidAnnotationError: If a condition can never hold, names no parameter, or is part of a cycle.
            ArgumentError: If the objective does not have one of the parameters.
            OutOfRangeError: If an argument lies outside its marker.
        """
        return cls._read(data, None, None if objective is None else cls.of(objective))

    @classmethod
    def _read(cls, data: Mapping[str, Any], references: References | None, objective: Self | None) -> Self:
        from optuna_flyte_dsl.space.written import declarations  # loaded late, as in `to_dict`
        from optuna_flyte_dsl.space.written.references import References

        references = references or References()
        signature = objective._signature if objective is not None else None
        if objective is not None:
            references.add(declarations.write(objective._signature, objective._bound)[1])
        signature, arguments = declarations.read(data, references, signature)
        space = cls(signature, objective._bound if objective is not None else {})
        space._check_conditions()
        return space.bind(**arguments)

    def of_objective(self, objective: Self) -> Self:
        """Return this space as one of an objective, whose signature has the types of the parameters.

        Raises:
            InvalidSpaceError: If this space is not one of the objective.
            ArgumentError: If the objective does not have one of the parameters.
        """
        from optuna_flyte_dsl.space.written import declarations  # loaded late, as in `to_dict`

        data, references = declarations.write(self._signature, self._bound)
        return self._read(data, references, objective)

    def to_json(self) -> str:
        """Return this space as JSON; see `to_dict`."""
        return files.to_json(self.to_dict())

    @classmethod
    def from_json(cls, text: str, objective: Callable[..., Any] | Self | None = None) -> Self:
        """Return the space that `to_json` has written; see `from_dict`."""
        return cls.from_dict(files.from_json(text), objective)

    def to_yaml(self) -> str:
        """Return this space as YAML; see `to_dict`."""
        return files.to_yaml(self.to_dict())

    @classmethod
    def from_yaml(cls, text: str, objective: Callable[..., Any] | Self | None = None) -> Self:
        """Return the space that `to_yaml` has written; see `from_dict`."""
        return cls.from_dict(files.from_yaml(text), objective)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write this space into a file whose name ends with `.json`, `.yaml` or `.yml`."""
        files.save(self.to_dict(), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], objective: Callable[..., Any] | Self | None = None) -> Self:
        """Return the space of a file that `save` has written; see `from_dict`."""
        return cls.from_dict(files.load(path), objective)

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON schema, of the draft 2020-12, of the keyword arguments of a trial.

        In JSON, a choice that has a name is its name, an object of a class is a dict of its fields, and an object of a
        choice between classes is a dict whose one key is the name of its class: `{"SVM": {"C": 1.0}}`. The schema says
        nothing of values that JSON does not have, and of a `Float` with more than 1,000 steps only the bounds.
        """
        from optuna_flyte_dsl.space import json_schema  # loaded late, as in `to_dict`

        return json_schema.json_schema(self.name, self._tree)

    def difference(self, other: Callable[..., Any] | Self) -> str:
        """Return in words how this space differs from another one, or from that of an objective.

        There is a line for each parameter that differs. The text is empty if the spaces are equal.

        >>> from optuna_flyte_dsl import Float, SearchSpace
        >>> def train(lr: Float(1e-5, 1e-1, log=True)) -> float: ...
        >>> space = SearchSpace.of(train)
        >>> print(space.bind(lr=Float(1e-4, 1e-2, log=True)).difference(space))
        lr: Float(0.0001, 0.01, log=True), was Float(1e-05, 0.1, log=True)
        """
        old = type(self).of(other)
        lines = list(differences(self._tree, old._tree))
        if not lines and self != old:
            lines = ["The parameters look alike, but have other types or other objects."]
        return "\n".join(lines)
