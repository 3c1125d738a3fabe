"""The search space: the searched parameters of an objective, and its fixed arguments.

`SearchSpace.from_signature` makes a space, `bind` adds the arguments of a call, and `suggest` returns the keyword
arguments of one trial.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import optuna

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import ArgumentError
from optuna_flyte_dsl.space import argument_errors, conversion, domain
from optuna_flyte_dsl.space.annotations import listed
from optuna_flyte_dsl.space.declared_space import DeclaredSpace
from optuna_flyte_dsl.space.markers import Suggestion
from optuna_flyte_dsl.space.nodes import InactiveGiven, Unlike


class SearchSpace(DeclaredSpace):
    """A mapping from the name of each searched parameter to its marker, in the order of the signature.

    The name of a parameter inside a container is its path: `params.lr`, `params.layers.0`. A space also holds the fixed
    arguments. A search space is immutable: `bind` returns a new space.

    >>> from optuna_flyte_dsl import Float, Integer
    >>> def train(lr: Float(1e-5, 1e-1, log=True), depth: Integer(2, 12), dataset: str = "wine") -> float: ...
    >>> space = SearchSpace.of(train)
    >>> dict(space)
    {'lr': Float(1e-05, 0.1, log=True), 'depth': Integer(2, 12)}
    >>> space.bind(depth=3, dataset="digits").contains({"lr": 0.01, "depth": 3, "dataset": "digits"})
    True
    """

    @property
    def parameter_names(self) -> AbstractSet[str] | None:
        """The names of the objective's parameters; `None` if it takes any name."""
        return None if self._signature.is_open else self._declared.keys()

    def declares(self, name: str) -> bool:
        """Return whether the signature names a parameter; an objective that takes `**kwargs` may take others too."""
        return name in self._declared

    def takes(self, name: str) -> bool:
        """Return whether the objective has a parameter or a field with this path, or takes any name."""
        return self._signature.is_open or name in self._signature.paths

    def unknown_parameter(self, name: str, *, cure: str = "") -> ArgumentError:
        """Return the error for an argument that the objective does not take.

        Args:
            name: The argument's name.
            cure: What else the user may have meant, as a clause.
        """
        return argument_errors.unknown_parameter(self.name, name, self._declared, cure)

    def check_ready(self) -> None:
        """Check that this space is ready for a search.

        Raises:
            ArgumentError: If an argument is missing.
            EmptySpaceError: If nothing is left to search.
        """
        self.check_complete()
        if not self:
            raise argument_errors.nothing_to_search(
                self.name, [name for name, each in self._declared.items() if each.is_searched]
            )

    def check_complete(self) -> None:
        """Check that every argument has a value or a marker.

        Raises:
            ArgumentError: If a parameter has neither a value nor a marker.
        """
        if self.missing:
            raise argument_errors.missing_values(
                self.name, {name: self._signature.paths[name].base for name in self.missing}
            )

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Return the keyword arguments of one trial: the fixed arguments, and those that the trial suggests.

        Each trial gets its own copies of dicts, lists, tuples and sets. Other objects, such as arrays, are shared.
        """
        distributions = self._distributions

        def choose(name: str, marker: Suggestion) -> Any:
            return marker.from_stored(conversion.suggest(trial, name, distributions[name]))

        return self._tree.fill(self._tree.draw(choose))

    def draw(self, choose: Callable[[str, Suggestion], Any]) -> dict[str, Any]:
        """Return what Optuna stores for a point, by name.

        Args:
            choose: Returns what is stored for a parameter, from its name and its marker. It is called for active
                parameters only, each behind those on which it depends.
        """
        point: dict[str, Any] = {}

        def note(name: str, marker: Suggestion) -> Any:
            point[name] = choose(name, marker)
            return marker.from_stored(point[name])

        self._tree.draw(note)
        return point

    @property
    def priors(self) -> dict[str, Callable[[float], float]]:
        """The priors of the parameters that have one, as `AutoSampler.use_priors` takes them."""
        return {
            name: functools.partial(domain.place_by_prior, marker)
            for name, marker in self.items()
            if domain.has_prior(marker)
        }

    def fill(self, choose: Callable[[str, Suggestion], Any] | Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of one trial, with a value in place of each marker.

        Args:
            choose: The values by name, such as a study's `best_params`; or a function of a name and its marker. The
                function is called for active parameters only, each behind those on which it depends.

        Raises:
            ArgumentError: If a value of an active parameter is missing.
        """
        if not callable(choose):
            values = choose
            drawn = self.values_of(values)
            missing: list[str] = []
            choose = lambda name, _: drawn[name] if name in drawn else missing.append(name)  # noqa: E731
            found = self._tree.draw(choose)
            if missing:
                raise ArgumentError(f"`{self.name}`: the values lack {listed(missing)}. Give a value for each marker.")
            return self._tree.fill(found)
        return self._tree.fill(self._tree.draw(choose))

    def values_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the searched values, by name, of a trial's parameters, such as `trial.params`.

        What Optuna stores differs from the values for choices that have names, and for an `Ordinal`. The result can be
        an initial point.

        Raises:
            ArgumentError: If Optuna stores no such thing for a parameter.
        """
        values = {}
        for name, stored in params.items():
            try:
                values[name] = self[name].from_stored(stored) if name in self else stored
            except ValueError as error:
                raise ArgumentError(
                    f"`{self.name}`: `{name}` of a trial: {error} Give what a trial has stored."
                ) from error
        return values

    def active_in(self, params: Mapping[str, Any]) -> AbstractSet[str]:
        """Return the names of the parameters that are active in a trial with some stored parameters.

        Args:
            params: What Optuna has stored, such as `trial.params`.
        """
        if not self.conditions:
            return self._markers.keys()
        known = {name: value for name, value in params.items() if name in self._markers}
        return self._tree.active_in(self.values_of(known))

    def contains(self, kwargs: Mapping[str, Any]) -> bool:
        """Return whether keyword arguments are a point of this space.

        Keyword arguments are a point if each active parameter lies within its marker (and on the grid of its step),
        each inactive parameter has its default, each fixed argument has its value, and no further argument is given.

        Args:
            kwargs: The keyword arguments of one trial.
        """
        return self._tree.contains(kwargs)

    def check_point(self, point: Mapping[str, Any]) -> None:
        """Check the names in an initial point.

        The point's values are checked later, at the call, because the call's arguments may replace markers.

        Args:
            point: The values, such as `{"lr": 0.1}`.

        Raises:
            ArgumentError: If the objective has no such parameter.
        """
        self._signature.check_point(point)

    def point(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the searched values, by name, of a trial's keyword arguments: the inverse of `suggest`.

        Args:
            kwargs: All keyword arguments of a trial, or some of them.

        >>> from optuna_flyte_dsl import Float, Integer
        >>> SearchSpace.of(lambda x, y: x).bind(x=Float(0, 1), y=[Integer(1, 9), 3]).point({"x": 0.5, "y": [4, 3]})
        {'x': 0.5, 'y.0': 4}
        """
        values = self._tree.read(kwargs, is_strict=False)
        if values is None:
            raise ArgumentError(f"`{self.name}`: {shown(dict(kwargs))} cannot be the arguments of a trial.")
        return {name: self[name].to_stored(conversion.convert(self[name], value)) for name, value in values.items()}

    def convert_point(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return an initial point with its values in the types that a trial would get; see `conversion.convert`.

        Args:
            point: Values of some searched parameters, such as `{"lr": 0.1}`; or whole arguments, such as an object of a
                class with searched fields, or a dict of some of its fields.

        Raises:
            ArgumentError: If the point names a parameter that the search does not have.
            OutOfRangeError: If a value lies outside its marker.
        """
        markers = self._markers
        try:
            by_path = self._tree.by_path(point)
        except InactiveGiven as inactive:
            raise argument_errors.inactive_in_point(self.name, *inactive.args) from None
        except Unlike as unlike:
            name, value = unlike.args
            inside = [each for each in markers if each.startswith(f"{name}.")]
            if name not in markers and not inside:
                raise argument_errors.unknown_in_point(self.name, name, markers, is_parameter=True) from None
            raise argument_errors.unlike_in_point(self.name, name, markers.get(name), inside, value) from None
        converted = {}
        for name, given in by_path.items():
            if name not in markers:
                raise argument_errors.unknown_in_point(self.name, name, markers, is_parameter=True)
            value = domain.named(markers[name], given)
            if not domain.contains(markers[name], value):
                raise argument_errors.out_of_range_in_point(self.name, name, markers[name], value)
            converted[name] = markers[name].to_stored(conversion.convert(markers[name], value))
        return converted
