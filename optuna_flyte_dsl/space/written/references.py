"""`References`: the names by which a written space refers to classes, functions and other objects of a program."""

from __future__ import annotations

import sys
import types
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

    def add(self, others: References) -> None:
        """Add the objects of another space. An object that is known already keeps its name."""
        self._objects = {**others._objects, **self._objects}

    def name_of(self, thing: Any, where: str) -> str:
        """Return the name of an object: `module:Class` for a class or a function, else the place where it stands.

        Args:
            where: The place of the object in the space, such as `activation: relu`.
        """
        name = where
        if isinstance(thing, type | types.FunctionType | types.BuiltinFunctionType):
            name = f"{thing.__module__}:{thing.__qualname__}"
            if self._objects.get(name, thing) is not thing:  # another class of the same name, as a factory makes them
                name = f"{name} at {where}"
        self._objects[name] = thing
        return name

    def find(self, name: Any) -> Any:
        """Return the object that has a name.

        Raises:
            InvalidSpaceError: If there is no such object.
        """
        if isinstance(name, str) and name in self._objects:
            return self._objects[name]
        module, _, path = name.partition(":") if isinstance(name, str) else ("", "", "")
        found: Any = sys.modules.get(module)
        for part in path.split("."):
            found = getattr(found, part, None)
        if not isinstance(found, type | types.FunctionType | types.BuiltinFunctionType):
            raise InvalidSpaceError(
                f"The space names the object {shown(name)}, which is not known here. Import the module that defines "
                "it, or give the objective, as in `SearchSpace.from_dict(data, train)`."
            )
        return found
