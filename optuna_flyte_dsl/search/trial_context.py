"""Awaits a trial's coroutine in a context of its own, in a task that runs other trials too."""

import contextvars
import functools
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class InContext(Generic[T]):
    """Awaits a coroutine whose context variables are those of a given context, as a task of its own would have.

    Attributes:
        has_waited: Whether the coroutine has waited for anything: if not, the event loop has not gone on meanwhile.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], context: contextvars.Context) -> None:
        self._coroutine = coroutine
        self._context = context
        self.has_waited: bool = False

    def __await__(self) -> Generator[Any, Any, T]:
        resume = functools.partial(self._coroutine.send, None)
        while True:
            try:
                awaited = self._context.run(resume)
            except StopIteration as returned:
                return returned.value  # type: ignore[no-any-return]
            self.has_waited = True
            try:
                resume = functools.partial(self._coroutine.send, (yield awaited))
            except BaseException as error:  # noqa: BLE001 - the coroutine gets it
                resume = functools.partial(self._coroutine.throw, error)
