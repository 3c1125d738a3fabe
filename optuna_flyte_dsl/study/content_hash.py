"""Hashes values by their content, the same in each process."""

from collections.abc import Callable
from typing import Any

import numpy as np
from joblib.hashing import NumpyHasher


def content_hash(value: Any, replace: Callable[[Any], Any] = lambda each: each) -> str:
    """Return a hash of a value's content. Functions, classes and files count by their name.

    Args:
        replace: Returns what is hashed in place of an object: of the value itself, and of all that it holds.

    Raises:
        Exception: Whatever pickle raises if the value cannot be pickled.
    """
    return str(_ContentHasher(replace).hash(value))  # type: ignore[no-untyped-call]


class _ContentHasher(NumpyHasher):
    """Joblib's hasher, with a hash by content for frozensets and masked arrays too."""

    def __init__(self, replace: Callable[[Any], Any]) -> None:
        super().__init__("md5")  # type: ignore[no-untyped-call]
        self._replace = replace

    def save(self, obj: Any) -> None:
        obj = self._replace(obj)
        if type(obj) is frozenset:
            obj = ("frozenset", set(obj))
        elif isinstance(obj, np.ma.MaskedArray):
            obj = ("masked array", obj.data, np.ma.getmaskarray(obj), obj.fill_value)
        super().save(obj)  # type: ignore[no-untyped-call]
