"""What pickled code keeps."""

import traceback

import cloudpickle
import pytest

from optuna_flyte_dsl._pickling import dumps

CODE = """
def outer():
    def inner():
        raise ValueError("by design")
    return inner
"""


def test_code_keeps_the_name_of_its_file():
    space = {}
    exec(compile(CODE, "/somewhere/their_file.py", "exec"), space)
    inner = cloudpickle.loads(dumps(space["outer"]))()
    with pytest.raises(ValueError, match="by design") as raised:
        inner()
    last = traceback.extract_tb(raised.tb)[-1]
    assert (last.filename, last.lineno) == ("/somewhere/their_file.py", 4)


def test_other_values_are_pickled_as_by_cloudpickle():
    for value in (1, "<dynamic-code>", {"a": [1.0, None]}, int):
        assert cloudpickle.loads(dumps(value)) == value
