"""`LoopWatch`: notices that an async objective blocks the event loop, so that no other trial goes on."""

import asyncio
from dataclasses import dataclass

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses


@dataclass
class LoopWatch:
    """Warns once, during a search, if the event loop runs a timer far too late.

    Args:
        name: The objective's name.
    """

    name: str
    _timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch the running event loop."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(pauses.loop_check, self._look, loop, loop.time() + pauses.loop_check)

    def stop(self) -> None:
        """End the watch."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        late = loop.time() - due
        if late < pauses.loop_block:
            self.start()
            return
        logger.warning(
            "`%s` is an async function, and the event loop was blocked for %.1f s: no other trial goes on meanwhile. "
            "Write `def` instead of `async def`, so that it runs in a thread, or await what blocks, as in `await "
            "asyncio.to_thread(...)`.",
            self.name,
            late,
        )
