"""The order of a deterministic search: trials are asked for and told in one order, whatever order they end in."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False)
class TrialOrder:
    """Lets trials be asked for and told in turn: tell k, ask k + concurrency, tell k + 1, and so on."""

    concurrency: int  # the largest number of trials that are asked for and not told
    wants_more: Callable[[], bool]  # tells whether another trial will be asked for
    claimed: Callable[[], int]  # returns how many trials have been asked for, or are about to be
    _given: int = 0
    _asked: int = 0
    _told: int = 0
    _waiting: set[asyncio.Future[None]] = field(default_factory=set)

    async def turn_to_ask(self) -> int:
        """Wait until a trial may be asked for. Return the trial's place in the order."""
        turn, self._given = self._given, self._given + 1
        await self._until(lambda: self._asked == turn and self._told > turn - self.concurrency)
        return turn

    def asked(self) -> None:
        """Note that the next trial was asked for."""
        self._asked += 1
        self._wake()

    async def turn_to_tell(self, turn: int) -> None:
        """Wait until a trial may be told: all earlier trials are told, and all asks that must not see it are done."""
        await self._until(lambda: self._told == turn and self._asked >= self._asks_before(turn))

    def told(self) -> None:
        """Note that the next trial was told."""
        self._told += 1
        self._wake()

    def _asks_before(self, turn: int) -> int:
        asks = turn + self.concurrency
        return asks if self.wants_more() else min(asks, self.claimed())

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(future)
            try:
                await future
            finally:
                self._waiting.discard(future)

    def _wake(self) -> None:
        for future in list(self._waiting):
            if not future.done():
                future.set_result(None)
