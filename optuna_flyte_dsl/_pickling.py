"""Pickles what cloudpickle does, and keeps the file names of code: errors of a worker name the file and the line."""

import io
import types
from typing import Any

import cloudpickle

_NO_FILE = "<dynamic-code>"  # what cloudpickle 3.1.3 writes in the place of a file's name


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, types.CodeType):
            return super().reducer_override(obj)  # type: ignore[no-untyped-call]
        reduce: Any = self.dispatch_table[types.CodeType]
        make, arguments = reduce(obj)
        return make, tuple(obj.co_filename if each == _NO_FILE else each for each in arguments)


def dumps(value: object) -> bytes:
    """Pickle a value, for `cloudpickle.loads`."""
    with io.BytesIO() as file:
        _Pickler(file).dump(value)  # type: ignore[no-untyped-call]
        return file.getvalue()
