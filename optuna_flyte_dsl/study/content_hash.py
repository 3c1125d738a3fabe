"""Hashes values by their content, the same in each process."""

from typing import Any

import numpy as np
from joblib.hashing import NumpyHasher


def content_hash(value: Any) -> str:
    """Return a hash of a value's content. Functions, classes and files count by their name.

    Raises:
        Exception: Whatever pickle raises if the value cannot be pickled.
    """
    return str(_ContentHasher("md5").hash(value))  # type: ignore[no-untyped-call]


class _ContentHasher(NumpyHasher):
    """Joblib's hasher, with a hash by content for frozensets and masked arrays too."""

    def save(self, obj: Any) -> None:
        if type(obj) is frozenset:
            obj = ("frozenset", set(obj))
        elif isinstance(obj, np.ma.MaskedArray):
            obj = ("masked array", obj.data, np.ma.getmaskarray(obj), obj.fill_value)
        super().save(obj)  # type: ignore[no-untyped-call]
