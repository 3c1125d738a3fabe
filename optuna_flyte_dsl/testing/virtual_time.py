"""An event loop whose time is a number: it passes at once when there is nothing to do but to wait."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import selectors
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from optuna_flyte_dsl._threads import Threads
from optuna_flyte_dsl.errors import OptunaFlyteError

_RESOLUTION = time.get_clock_info("monotonic").resolution  # asyncio's


class EndlessWaitError(OptunaFlyteError, RuntimeError):
    """Raised when all that runs in a `VirtualTimeLoop` waits for something that never happens."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that does not wait for its timers. Its time begins at 0 seconds."""

    def __init__(self) -> None:
        self.now: float = 0.0
        self._selector_of_time = _VirtualSelector(self)
        super().__init__(self._selector_of_time)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self.now

    async def shutdown_default_executor(self, *args: Any) -> None:
        """Wait for the threads of `asyncio.to_thread`, which take no virtual time."""
        with self.held():
            await super().shutdown_default_executor(*args)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Stop the time while other threads work: the loop then waits for them."""
        self._selector_of_time.holds += 1
        try:
            yield
        finally:
            self._selector_of_time.holds -= 1


class _VirtualSelector(selectors.BaseSelector):
    """A selector that lets the time of its loop pass, in place of waiting."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self._loop = loop
        self._real = selectors.DefaultSelector()
        self.holds: int = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready. If nothing is, let the time pass that the loop would have waited."""
        ready = self._real.select(0)
        if ready or timeout == 0:
            return ready
        if self.holds:
            return self._real.select(None)
        if timeout is None:
            raise EndlessWaitError(
                "The simulation waits for what never happens on a virtual clock, such as a thread. Give `outcomes`, in "
                "place of an objective that waits for something else than `asyncio.sleep`."
            )
        self._loop.now += timeout
        if self._loop.now + _RESOLUTION == self._loop.now:  # asyncio would not see that a timer is due
            self._loop.now = math.nextafter(self._loop.now, math.inf)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Register a file."""
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Unregister a file."""
        return self._real.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Return the registered files."""
        return self._real.get_map()

    def close(self) -> None:
        """Free the selector."""
        self._real.close()


class InlineThreads(Threads):
    """Runs each function at once, in the calling thread, so that it takes no virtual time."""

    def run(self, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Run a function. Return a future that is done."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            future.set_result(contextvars.copy_context().run(function, *args))
        except Exception as error:  # noqa: BLE001 - the awaiting side gets it
            future.set_exception(error)
        return future
