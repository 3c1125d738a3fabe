"""`record`: a dataclass that is made quickly, for classes that only this package uses."""

import dataclasses
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(dataclasses.field,))
def record(kind: type[T]) -> type[T]:
    """Make a class a dataclass whose fields never change.

    Only the type checkers refuse an assignment. For that, Python would compile two methods more for each class, and
    three for the equality and the text of an instance. This would take 1 % of an import of flytekit and Optuna.
    """
    return dataclasses.dataclass(eq=False, repr=False)(kind)
