"""Finds where in the user's code an error was raised: its place, and a traceback without the frames of other code."""

import contextlib
import functools
import linecache
import os
import pathlib
import re
import signal
import sysconfig
import traceback
from collections.abc import Iterator
from typing import Any

from optuna_flyte_dsl._text import printable
from optuna_flyte_dsl.space.signatures import plain_function

_TRACEBACK_LIMIT = 4_000  # characters of a stored traceback
_CODE_LIMIT = 100  # characters of a line of code
_PLACE, _TRACEBACK = "__optuna_flyte_dsl_place__", "__optuna_flyte_dsl_traceback__"
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)\n(?:\W*\s(?P<code>\S.*))?')
"""Matches a frame in the text of a traceback."""


@functools.cache
def _other_code() -> tuple[str, ...]:
    """Return the folders of Python, of installed packages, and of this library."""
    installed = map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))
    folders = (*installed, str(pathlib.Path(__file__).parents[1]))
    return tuple(os.path.join(folder, "") for folder in folders)


def place_of(error: BaseException | None) -> str:
    """Return where in the user's code an error was raised, as in "train.py:6, in load: return rows[name]".

    The text is empty if neither a traceback nor the message of a failed execution shows the user's code.
    """
    if error is None:
        return ""
    kept = attribute_of(error, _PLACE)
    if isinstance(kept, str):
        return kept
    frames = list(_user_frames(traceback.extract_tb(error.__traceback__)))
    if frames:
        last = frames[-1]
        return _place(last.filename, last.lineno or 0, last.name, last.line or "")
    message = attribute_of(error, "message")
    return _place_in(message) if isinstance(message, str) else ""


def traceback_of(error: BaseException) -> str:
    """Return an error's traceback as Python prints it, without the frames of other code; empty without such frames.

    If the traceback is too long, its end is returned.
    """
    kept = attribute_of(error, _TRACEBACK)
    if isinstance(kept, str):
        return kept
    with contextlib.suppress(Exception):  # an error of a user's class may raise anything when it is looked at
        whole = traceback.TracebackException.from_exception(error)
        left = [whole]
        while left:
            shown = left.pop()
            shown.stack = traceback.StackSummary.from_list(list(_user_frames(shown.stack)))
            left += [
                each for each in (shown.__cause__, shown.__context__, *(shown.exceptions or ())) if each is not None
            ]
        return "".join(whole.format())[-_TRACEBACK_LIMIT:] if whole.stack else ""
    return ""


def keep_origin(error: BaseException, origin: BaseException | None = None) -> None:
    """Note the place and the traceback of an error in the error itself, because they are lost when it is pickled.

    Args:
        origin: The error that `error` replaces, if it replaces one.
    """
    origin = origin or error
    with contextlib.suppress(Exception):  # a user's `__setattr__` may raise anything
        place, text = place_of(origin), traceback_of(origin)
        setattr(error, _PLACE, place)
        setattr(error, _TRACEBACK, text)


def _user_frames(frames: traceback.StackSummary) -> Iterator[traceback.FrameSummary]:
    for frame in frames:
        if not frame.filename.startswith(_other_code()):
            yield frame


def _place(file: str, line: int, function: str, code: str) -> str:
    code = code.strip() or linecache.getline(file, line).strip()
    if len(code) > _CODE_LIMIT:
        code = f"{code[:_CODE_LIMIT]}..."
    return printable(f"{pathlib.PurePath(file).name}:{line}, in {function}{code and f': {code}'}")


def _place_in(message: str) -> str:
    """Return the last place of the user's code in the text of a pod's traceback."""
    place = ""
    for frame in _FRAME.finditer(message):
        if not re.search(r"site-packages|dist-packages|/lib/python3", frame["file"]):
            place = _place(frame["file"], int(frame["line"]), frame["function"], frame["code"] or "")
    return place


def is_from_signal(error: BaseException) -> bool:
    """Return whether the handler of a signal has raised an error, such as flytekit's, which ends Python at Ctrl-C.

    Python calls the handlers in the main thread, wherever that is: perhaps in the code of an objective.
    """
    if isinstance(error, KeyboardInterrupt):
        return True
    if isinstance(error, Exception):  # a handler may stop a trial that lasts for too long
        return False
    handlers = filter(callable, map(signal.getsignal, signal.valid_signals()))
    codes = {getattr(plain_function(handler), "__code__", None) for handler in handlers}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def attribute_of(error: BaseException, name: str) -> Any:
    """Return an attribute of an error; `None` if it has none.

    An error class of a user may have a `__getattr__` that raises anything.
    """
    with contextlib.suppress(Exception):
        return getattr(error, name, None)
    return None
