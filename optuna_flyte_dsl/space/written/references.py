"""`References`: the names by which a written space refers to classes, functions and other objects of a program."""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Mapping
from typing import Any

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidSpaceError


class References:
    """The objects to which a written space refers, by the names that it has for them.

    Writing a space collects its objects. Reading looks a name up among the objects that were collected, and then in the
    modules that the program has imported. Reading never imports a module, so that a file cannot run code.
    """

    def __init__(self) -> None:
        self._objects: dict[str, Any] = {}
        self._conditions: set[str] = set()  # the names of those that are functions of conditions

    def add(self, others: References) -> None:
        """Add the objects of another space. An object that is known already keeps its name."""
        self._objects = {**others._objects, **self._objects}
        self._conditions |= others._conditions

    def name_of(self, thing: Any, where: str) -> str:
        """Return the name of an object: `module:Class` for a class or a function, else the place where it stands.

        Args:
            where: The place of the object in the space, such as `activation: relu`.
        """
        name = where
        if _is_named(thing):
            name = f"{thing.__module__}:{thing.__qualname__}"
            if self._objects.get(name, thing) is not thing:  # another class of the same name, as a factory makes them
                name = where
        for number in itertools.count(2):
            if self._objects.setdefault(name, thing) is thing:
                return name
            name = f"{where} #{number}"
        raise AssertionError

    def name_of_condition(self, function: Any, where: str) -> str:
        """Return the name of a function that decides a condition."""
        name = self.name_of(function, where)
        self._conditions.add(name)
        return name

    def condition(self, name: Any) -> Any:
        """Return the collected function of a condition that has a name; `None` if there is none.

        A search calls the function, so that a file may name no other one.
        """
        if name in self._conditions:
            return self._objects[name]
        alike = self._alike({each: self._objects[each] for each in self._conditions}, str(name))
        return alike[0] if len(alike) == 1 else None

    @staticmethod
    def _alike(objects: Mapping[str, Any], name: str) -> list[Any]:
        """Return the classes and functions whose name differs in the module only."""
        path = name.partition(":")[2]
        return [each for key, each in objects.items() if key.partition(":")[2] == path and _is_named(each)]

    def find(self, name: Any) -> Any:
        """Return the object that has a name.

        A class or a function is also found if its module has another name there: a script is called `__main__`.

        Raises:
            InvalidSpaceError: If there is no such object.
        """
        if isinstance(name, str):
            if name in self._objects:
                return self._objects[name]
            module, _, path = name.partition(":")
            alike = self._alike(self._objects, name)
            found = alike[0] if len(alike) == 1 else _imported(module, path)
            if isinstance(found, _IMPORTABLE):
                return found
        raise InvalidSpaceError(
            f"The space names the object {shown(name)}, which is not known here. Import the module that defines it, or "
            "give the objective that has it, as in `SearchSpace.from_dict(data, train)`."
        )


_IMPORTABLE = (type, types.FunctionType, types.BuiltinFunctionType)


def _is_named(thing: Any) -> bool:
    return isinstance(thing, _IMPORTABLE) and "<" not in thing.__qualname__


def _imported(module: str, path: str) -> Any:
    """Return what an imported module has under a path; `None` if there is no such thing. No code of the module runs."""
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = vars(found).get(part) if isinstance(found, type | types.ModuleType) else None
    return found
