"""`PendingSearch`: a search that was called and waits to be awaited."""

import inspect
import warnings
from collections.abc import Coroutine
from typing import Any

import optuna

from optuna_flyte_dsl.errors import NotAwaitedError


class PendingSearch(Coroutine[Any, Any, optuna.Study]):
    """A coroutine that raises `NotAwaitedError` if it is used as the study before it is awaited."""

    __slots__ = ("_coroutine", "_is_awaited", "_name")

    def __init__(self, coroutine: Coroutine[Any, Any, optuna.Study], name: str) -> None:
        self._coroutine = coroutine
        self._name = name
        self._is_awaited = False

    def send(self, value: Any) -> Any:
        """Go on until the next pause; see `collections.abc.Coroutine`."""
        return self._coroutine.send(value)

    def throw(self, *args: Any) -> Any:
        """Raise an error where the search pauses; see `collections.abc.Coroutine`."""
        return self._coroutine.throw(*args)

    def close(self) -> None:
        """End the search where it pauses; see `collections.abc.Coroutine`."""
        self._coroutine.close()

    def __await__(self) -> Any:
        self._is_awaited = True
        return self._coroutine.__await__()

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("cr_", "__")):  # attributes that asyncio and debuggers read from a coroutine
            return getattr(self._coroutine, name)
        raise NotAwaitedError(
            f"`{self._name}(...)` is a search that has not run yet, so it has no `{name}`. Write "
            f"`study = await {self._name}(...)`; or, where nothing can be awaited, "
            f"`study = {self._name}.run_sync(...)`."
        )

    def __del__(self) -> None:
        coroutine: Any = self._coroutine
        if not self._is_awaited and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            coroutine.close()  # instead of Python's own warning, which names no cure
            warnings.warn(
                f"`{self._name}(...)` was never awaited, so no search has run. Write `await {self._name}(...)`; or, "
                f"where nothing can be awaited, `{self._name}.run_sync(...)`.",
                RuntimeWarning,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        return f"<search of {self._name}, not awaited yet>"
