"""Where in the user's code an error was raised."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optuna_flyte_dsl.search import error_origin
from optuna_flyte_dsl.search.error_origin import keep_origin, place_of, traceback_of


def raised(function, *args):
    with pytest.raises(Exception) as caught:
        function(*args)
    return caught.value


def through_the_standard_library():
    json.loads("[")


def with_a_cause():
    try:
        through_the_standard_library()
    except ValueError as error:
        raise RuntimeError("no rows") from error


def test_the_place_is_the_users_last_line_and_not_that_of_another_package():
    place = place_of(raised(through_the_standard_library))
    assert place.startswith("test_error_origin.py:")
    assert place.endswith(', in through_the_standard_library: json.loads("[")')
    assert place_of(None) == place_of(ValueError("never raised")) == traceback_of(ValueError("never raised")) == ""


def test_a_traceback_has_the_users_frames_and_the_causes():
    text = traceback_of(raised(with_a_cause))
    assert text.count("Traceback (most recent call last):") == 2
    assert "json/decoder.py" not in text
    assert text.endswith("RuntimeError: no rows\n")
    assert "in through_the_standard_library" in text


def test_a_group_of_errors_shows_the_users_frames_of_each():
    def group():
        raise ExceptionGroup("two", [raised(through_the_standard_library), raised(with_a_cause)])

    text = traceback_of(raised(group))
    assert "no rows" in text
    assert "json/decoder.py" not in text
    assert place_of(raised(group)).startswith("test_error_origin.py:")


def test_an_error_keeps_its_origin_when_it_is_pickled():
    error = raised(with_a_cause)
    place, text = place_of(error), traceback_of(error)
    keep_origin(error)
    sent = pickle.loads(pickle.dumps(error))
    assert (sent.__traceback__, place_of(sent), traceback_of(sent)) == (None, place, text)
    substitute = LookupError("cannot be sent")
    keep_origin(substitute, error)
    assert (place_of(substitute), traceback_of(substitute)) == (place, text)


def test_an_error_without_room_for_its_origin_is_left_as_it_is():
    class Closed(Exception):
        def __setattr__(self, name, value):
            raise TypeError("closed")

        def __getattr__(self, name):
            raise TypeError("closed")

    error = Closed("it")
    keep_origin(error)
    assert place_of(error) == ""


def test_a_long_traceback_keeps_its_end_and_a_long_line_its_beginning():
    error = raised(eval, "1 / 0 + " + "1 + " * 200 + "1")
    assert len(place_of(error)) < 200
    deep = raised(_deep, 200)
    assert len(traceback_of(deep)) <= 4_000
    assert traceback_of(deep).endswith("ValueError: deep\n")


def _deep(depth):
    return _deeper(depth)


def _deeper(depth):
    if depth == 0:
        raise ValueError("deep")
    return _deep(depth - 1)


def test_the_place_in_a_pod_is_read_from_flytes_message():
    class Failed(Exception):
        message = """Trace:

    Traceback (most recent call last):
      File "/usr/lib/python3.11/site-packages/flytekit/core/base_task.py", line 732, in dispatch_execute
        native_outputs = self.execute(**native_inputs)
                         ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
      File "/root/train.py", line 6, in train
        return load(name)
      File "/root/rows.py", line 12, in load
        return rows[name]
               ~~~~^^^^^^
      File "/usr/lib/python3.11/collections/__init__.py", line 1, in __missing__
        raise KeyError(key)

Message:

    KeyError: 'wine'"""

    assert place_of(Failed()) == "rows.py:12, in load: return rows[name]"


def test_control_characters_in_a_pods_message_are_escaped():
    error = ValueError("text")
    error.message = 'File "/root/train.py", line 6, in train\n    raise ValueError("\x1b[31mred")\n'
    assert place_of(error) == 'train.py:6, in train: raise ValueError("\\x1b[31mred")'


@given(st.text())
def test_any_message_can_be_read(message):
    error = ValueError("text")
    error.message = message
    assert isinstance(place_of(error), str)
    assert isinstance(error_origin.traceback_of(error), str)
